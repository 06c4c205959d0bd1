"""What a person wants to know about checkpoints: which there are, whether one is sound, how two differ.

Needs neither ranks nor a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product, zip_longest
from pathlib import Path

import numpy as np

from nt_dist.checkpoint.folder import Found, checkpoints
from nt_dist.checkpoint.fragments import FragmentReader, file_problems
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.config.settings import by_key
from nt_dist.errors import CheckpointError

_LISTED = 8  # entries that are shown one by one, at most


def in_folder(path: Path) -> list[Found]:
    """Return the checkpoints of a run, or in a folder of them, from old to new; CheckpointError if there are none."""
    found = checkpoints(path)
    if not found:
        raise CheckpointError(f"{path}: no folder with checkpoints")
    return found


def describe(found: Found) -> str:
    """Return one line about a checkpoint, from a quick look."""
    if found.manifest is None:
        return f"{found.path.name}  {found.problem}"
    manifest, samples = found.manifest, found.manifest.training_state.consumed_samples
    size = sum(entry.size for entry in manifest.files.values())
    layout = ", ".join(f"{key} {value}" for key, value in manifest.layout.items())
    line = f"{found.path.name}  {manifest.saved_at}  {size / 1e6:.1f} MB  {samples} samples  {layout}"
    return f"{line}  {found.problem}" if found.problem else line


def examine(path: Path) -> list[str]:
    """Check manifest, sizes, hashes, and every fragment's shape, positions and numbers of a checkpoint.

    Returns what is wrong, one message a file or fragment; nothing if it is sound.
    """
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    problems = file_problems(path, manifest)
    if problems:  # what is in a damaged file would only repeat it
        return problems
    with FragmentReader(path, manifest) as reader:
        for name, entry in manifest.weights.items():
            for trail, shard in product(range(entry.trails), range(entry.shards)):
                try:
                    reader.read(name, trail, shard, manifest.states_of(name))
                except CheckpointError as error:
                    problems.append(str(error))
    return problems


@dataclass
class WeightDifference:
    """How one weight differs between two checkpoints."""

    active: int = 0  # entries in the first, over all trails and shards
    shared: int = 0  # those that are active in both
    largest: dict[str, float] = field(default_factory=dict)  # difference over those, of value and common moments

    @property
    def is_none(self) -> bool:
        """Whether positions, values and moments are all equal."""
        return self.active == self.shared and not any(self.largest.values())


@dataclass
class Comparison:
    """How two checkpoints differ."""

    settings: list[str]  # that differ, one line each
    state: list[str]  # differences in where the run stood and in the set of weights, one line each
    weights: dict[str, WeightDifference]  # those that have the same shape in both

    @property
    def is_same_state(self) -> bool:
        """Whether both stand at the same point with the same weights, whatever settings led there."""
        return not self.state and all(each.is_none for each in self.weights.values())


def compare(first: Path, second: Path) -> Comparison:
    """Compare two checkpoints, in whatever layouts they were written; a CheckpointError if one cannot be read."""
    ours, theirs = read_manifest(first), read_manifest(second)
    state = _differing(vars(ours.training_state), vars(theirs.training_state))
    state += _differing({"moments": ours.moments}, {"moments": theirs.moments})
    found = Comparison(_differing(by_key(ours.config), by_key(theirs.config)), state, {})
    with FragmentReader(first, ours) as our_reader, FragmentReader(second, theirs) as their_reader:
        for name, a, b in _pairs(ours.weights, theirs.weights):
            if a is None or b is None:
                state.append(f"{name}: only in {first if b is None else second}")
            elif a.description() != b.description():
                state += _differing({name: a.description()}, {name: b.description()})
            else:
                found.weights[name] = _compare(our_reader, their_reader, name)
    return found


def _pairs(first: dict, second: dict) -> Iterator[tuple]:
    for key in {**first, **second}:
        yield key, first.get(key), second.get(key)


def _differing(first: dict, second: dict) -> list[str]:
    """A line for each entry that differs; of long lists, as the guard's window, how many of theirs do."""
    lines = []
    for key, a, b in _pairs(first, second):
        if isinstance(a, dict) and isinstance(b, dict):
            lines += [f"{key}.{line}" for line in _differing(a, b)]
        elif a != b and isinstance(a, list) and isinstance(b, list) and max(len(a), len(b)) > _LISTED:
            changed = sum(one != other for one, other in zip_longest(a, b))
            lines.append(f"{key}: {len(a)} and {len(b)} entries, {changed} differ")
        elif a != b:
            lines.append(f"{key}: {a!r} and {b!r}")
    return lines


def in_order(name: str) -> list[str]:
    """By what names of weights are sorted: blocks.2 comes before blocks.10."""
    return [part.zfill(6) if part.isdecimal() else part for part in name.split(".")]


def _compare(ours: FragmentReader, theirs: FragmentReader, name: str) -> WeightDifference:
    entry = ours.manifest.weights[name]
    states = [state for state in ours.manifest.states_of(name) if state in theirs.manifest.states_of(name)]
    found = WeightDifference(largest=dict.fromkeys(states, 0.0))
    for trail, shard in product(range(entry.trails), range(entry.shards)):
        a, b = (reader.read(name, trail, shard, states) for reader in (ours, theirs))
        at_a = at_b = slice(None)
        if entry.is_sparse:
            _, at_a, at_b = np.intersect1d(a["positions"], b["positions"], assume_unique=True, return_indices=True)
        found.active += len(a["value"])
        found.shared += len(a["value"][at_a])
        for state, largest in found.largest.items():
            found.largest[state] = max(largest, float(np.abs(a[state][at_a] - b[state][at_b]).max(initial=0.0)))
    return found
