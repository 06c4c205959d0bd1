"""The manifest of a checkpoint: what it holds, in which files, and how to tell that it is whole.

``manifest.json`` is written last and names every other file with its size and SHA-256, every weight with its global
shape, and for every (trail, shard) of it the file that holds that fragment. It says nothing about who computed what: no
storage, ZeRO stage, precision or mesh is needed to read it. Reading trusts nothing: the file is data from outside.

This module knows neither torch nor the layout of the folder around the checkpoint.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nt_dist.config.settings import ADAMW_MOMENTS
from nt_dist.errors import CheckpointError
from nt_dist.files import FileEntry

FORMAT = "nt_dist checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.toml"
_MOST_POSITIONS = 1 << 31
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class VersionError(CheckpointError):
    """A checkpoint of another format version: whole, perhaps, but not for this program to judge."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, apart from its weights.

    Attributes:
        step: Optimizer steps taken.
        consumed_samples: Samples taken from the order of samples; the next one has this number.
        adam_step: Adam's own count of steps (it lags behind ``step`` when steps are skipped).
        data_digest: Digest of the prepared training data.
        extra: Anything else that has to survive, as JSON: skipped samples, for one.
    """

    step: int
    consumed_samples: int
    adam_step: int
    data_digest: str
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FragmentEntry:
    """The file of one (trail, shard) of a weight, and the checksum of its positions (None if the weight is dense)."""

    file: str
    checksum: str | None


@dataclass(frozen=True)
class WeightEntry:
    """One weight as all layouts know it: the fields of its ``WeightSpec`` that give a fragment its meaning.

    Attributes:
        shape: One trail's whole dense shape.
        cut_axis: The axis that is cut into ``shards``.
        trails: Copies of the weight.
        shards: Topology shards.
        valid: Real entries of the cut axis.
        density: Share of active entries; 1 is dense, without positions.
        slots: Active entries of every shard.
        fragments: "trail/shard" to where it is.
        is_statistic: Whether it is no weight but a statistic, which has values and no moments.
    """

    shape: tuple[int, ...]
    cut_axis: int
    trails: int
    shards: int
    valid: int
    density: float
    slots: tuple[int, ...]
    fragments: dict[str, FragmentEntry] = field(default_factory=dict)
    is_statistic: bool = False

    @property
    def is_sparse(self) -> bool:
        """Whether fragments have positions."""
        return self.density < 1.0

    @property
    def shard_elements(self) -> int:
        """Entries of one shard's block, padding included."""
        return math.prod(self.shape) // self.shards

    def expected_fragments(self) -> list[str]:
        """Return the names of all fragments, trail by trail."""
        return [f"{trail}/{shard}" for trail in range(self.trails) for shard in range(self.shards)]

    def description(self) -> dict[str, Any]:
        """Return what must be the same to load it; of the density, whose last digits need not be, what it led to."""
        values = {key: value for key, value in vars(self).items() if key not in ("fragments", "density")}
        return {**values, "sparse": self.is_sparse}


@dataclass(frozen=True)
class Manifest:
    """All that a checkpoint says about itself.

    Attributes:
        serial: One more than that of every checkpoint that was in the folder: orders checkpoints by when they were
            made, even if the clock jumped or the run went back to an earlier step.
        saved_at: Local time, for people.
        written_by: Version of nt_dist.
        progress: Where the run stood.
        moments: What the optimizer keeps beside each value: ``config.train.moments``.
        layout: Degrees of the mesh, ZeRO stage and precision that wrote it, for people.
        config: The resolved configuration, section by section.
        files: Every file of the checkpoint but the manifest.
        weights: Every weight, and every statistic, by name.
    """

    serial: int
    saved_at: str
    written_by: str
    progress: Progress
    moments: tuple[str, ...]
    layout: dict[str, Any]
    config: dict[str, Any]
    files: dict[str, FileEntry]
    weights: dict[str, WeightEntry]

    @property
    def states(self) -> tuple[str, ...]:
        """Names of all that a weight's fragment has for each of its positions."""
        return ("value", *self.moments)

    def states_of(self, name: str) -> tuple[str, ...]:
        """Return :attr:`states`, or of a statistic its value alone."""
        return ("value",) if self.weights[name].is_statistic else self.states

    def to_json(self) -> str:
        """Return the text of ``manifest.json``, its own digest included.

        Raises:
            CheckpointError: Something in ``progress.extra`` or the configuration cannot be written as JSON.
        """
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content |= content.pop("progress")
        try:
            content["digest"] = _digest(content)
            return json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the state of the run cannot be written as JSON: {error}") from error


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(checkpoint: Path | str) -> Manifest:
    """Read the manifest of a checkpoint and check that it is whole and means something.

    Args:
        checkpoint: The checkpoint's folder.

    Raises:
        VersionError: It has another format version.
        CheckpointError: It is missing, unreadable, damaged or malformed; the message names the file.
    """
    path = Path(checkpoint) / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: missing: not a checkpoint, or an unfinished one") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_manifest(text, str(path))


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Parse the text of a manifest; ``path`` is for messages. Raises as :func:`read_manifest`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: damaged: not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f'{path}: damaged, or not a checkpoint of nt_dist: "format" is not "{FORMAT}"')
    if content.get("version") != VERSION:
        found = repr(content.get("version"))[:40]
        raise VersionError(f"{path}: format version {found}; this program reads version {VERSION}")
    written = content.pop("digest", None)
    try:
        computed = _digest(content)
    except (ValueError, RecursionError):
        computed = None
    if computed is None or written != computed:
        raise CheckpointError(f"{path}: damaged: its content does not match its digest")
    return _Reader(path).manifest(content)


class _Reader:
    """Turns parsed JSON into a :class:`Manifest`; whatever is not as it must be is an error that says where."""

    def __init__(self, path: str):
        self.path = path

    def fail(self, where: str, rule: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: malformed: {where} must be {rule}")

    def get(self, content: dict, key: str, kind: type, where: str = "") -> Any:
        value = content.get(key)
        name = f"{where}{key}"
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(name, kind.__name__)
        if kind is int and value < 0:
            raise self.fail(name, "at least 0")
        return value

    def manifest(self, content: dict) -> Manifest:
        progress = Progress(
            step=self.get(content, "step", int),
            consumed_samples=self.get(content, "consumed_samples", int),
            adam_step=self.get(content, "adam_step", int),
            data_digest=self.get(content, "data_digest", str),
            extra=self.get(content, "extra", dict),
        )
        files = {name: self.file(name, entry) for name, entry in self.get(content, "files", dict).items()}
        weights = {name: self.weight(name, entry, files) for name, entry in self.get(content, "weights", dict).items()}
        config = self.get(content, "config", dict)
        for section in config:
            self.get(config, section, dict, "config.")
        return Manifest(
            serial=self.get(content, "serial", int),
            saved_at=self.get(content, "saved_at", str),
            written_by=self.get(content, "written_by", str),
            progress=progress,
            moments=self.moments(content),
            layout=self.get(content, "layout", dict),
            config=config,
            files=files,
            weights=weights,
        )

    def moments(self, content: dict) -> tuple[str, ...]:
        found = content.get("moments", list(ADAMW_MOMENTS))  # before there was SGD, none were named
        if not isinstance(found, list) or not all(isinstance(name, str) and name.isidentifier() for name in found):
            raise self.fail("moments", "a list of names")
        if len({"value", "positions", *found}) != len(found) + 2:
            raise self.fail("moments", "different names, none of them value or positions")
        return tuple(found)

    def file(self, name: str, entry: Any) -> FileEntry:
        where = f"files[{name!r}]"
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:  # never a path that leads out of the checkpoint
            raise self.fail(where, "a plain file name")
        if not isinstance(entry, dict):
            raise self.fail(where, "an object")
        return FileEntry(self.get(entry, "size", int, where + "."), self.get(entry, "sha256", str, where + "."))

    def weight(self, name: str, entry: Any, files: dict[str, FileEntry]) -> WeightEntry:
        where = f"weights[{name!r}]"
        if not isinstance(entry, dict):
            raise self.fail(where, "an object")
        where += "."
        weight = WeightEntry(
            shape=self.counts(entry, "shape", where),
            cut_axis=self.get(entry, "cut_axis", int, where),
            trails=self.get(entry, "trails", int, where),
            shards=self.get(entry, "shards", int, where),
            valid=self.get(entry, "valid", int, where),
            density=self.get(entry, "density", float, where),
            slots=self.counts(entry, "slots", where),
            is_statistic=self.get({"is_statistic": False, **entry}, "is_statistic", bool, where),
        )
        if weight.cut_axis >= len(weight.shape):
            raise self.fail(where + "cut_axis", "an axis of its shape")
        if weight.shards < 1 or weight.trails < 1 or len(weight.slots) != weight.shards:
            raise self.fail(where + "slots", "one number for each shard")
        if weight.shape[weight.cut_axis] % weight.shards or max(weight.slots) > weight.shard_elements:
            raise self.fail(where + "slots", "within a shard of its shape")
        if weight.is_sparse and weight.shard_elements > _MOST_POSITIONS:
            raise self.fail(where + "shape", f"of at most {_MOST_POSITIONS} entries a shard, for positions are int32")
        found = self.get(entry, "fragments", dict, where)
        if len(found) != weight.trails * weight.shards or sorted(found) != sorted(weight.expected_fragments()):
            raise self.fail(where + "fragments", "one for each trail and shard")
        for key, fragment in found.items():
            weight.fragments[key] = self.fragment(f"{where}fragments[{key!r}]", fragment, weight, files)
        return weight

    def counts(self, entry: dict, key: str, where: str) -> tuple[int, ...]:
        values = self.get(entry, key, list, where)
        if not values or not all(type(value) is int and value >= 0 for value in values):
            raise self.fail(where + key, "a list of counts")
        return tuple(values)

    def fragment(self, where: str, fragment: Any, weight: WeightEntry, files: dict[str, FileEntry]) -> FragmentEntry:
        if not isinstance(fragment, dict):
            raise self.fail(where, "an object")
        file, checksum = fragment.get("file"), fragment.get("checksum")
        if not isinstance(file, str) or file not in files:
            raise self.fail(where + ".file", "one of the checkpoint's files")
        if not isinstance(checksum, str if weight.is_sparse else type(None)):
            raise self.fail(where + ".checksum", "text" if weight.is_sparse else "null in a dense weight")
        return FragmentEntry(file, checksum)
