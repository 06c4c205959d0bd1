"""Between a checkpoint and the weights of a model: which fit each other, and what of it goes where.

Knows no ranks, no optimizer and no DeepSpeed: whoever only computes with a trained model (inference, export) reads its
weights with this, and so does a run that goes on.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.checkpoint.manifest import FragmentEntry, Manifest, WeightEntry
from nt_dist.config import Config
from nt_dist.config.settings import differences
from nt_dist.errors import CheckpointError
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.sparsity.spec import flat_index
from nt_dist.sparsity.statistic import Statistic
from nt_dist.sparsity.weight import Weight


class Slots(NamedTuple):
    """What a checkpoint has of a weight, for the trails and shards that are held here.

    Attributes:
        index: Each slot's flat place in its trail's local dense tensor, int64 [T, slots]; None for a dense weight.
        states: fp32 [T, slots] by name: value and the moments that were read.
    """

    index: torch.Tensor | None
    states: dict[str, torch.Tensor]


def check_config(path: Path, manifest: Manifest, config: Config, resuming: bool) -> None:
    """Compare a checkpoint's configuration with a run's.

    Args:
        path: The checkpoint, for messages.
        manifest: Its manifest.
        config: The configuration of the run.
        resuming: Whether the run goes on, so that its schedule counts, too.

    Raises:
        CheckpointError: It is of another model, or of a schedule that ``run.allow_schedule_change`` does not allow.
    """
    try:
        identity, schedule = differences(manifest.config, config)
    except (TypeError, ValueError) as error:  # values of types that no setting has
        raise CheckpointError(f"{path}: malformed: its configuration cannot be compared: {error}") from error
    if identity:
        raise CheckpointError("\n".join([f"{path}: a checkpoint of another model", *identity]))
    if schedule and resuming and not config.run.allow_schedule_change:
        rule = "the schedule differs from the checkpoint's; run.allow_schedule_change=true goes on all the same"
        raise CheckpointError("\n".join([f"{path}: {rule}", *schedule]))


def weight_entry(weight: Weight | Statistic, file: str = "") -> WeightEntry:
    """Return the manifest's entry of a weight or statistic: the fragments held here in ``file``, no checksums yet."""
    spec = weight.spec
    checksum = "" if spec.is_sparse else None  # filled in with the positions
    return WeightEntry(
        shape=tuple(spec.shape),
        cut_axis=spec.cut_axis,
        trails=spec.trails,
        shards=spec.shards,
        valid=spec.valid,
        density=float(spec.density),
        slots=tuple(spec.slots(shard) for shard in range(spec.shards)),
        fragments={f"{t}/{s}": FragmentEntry(file, checksum) for t in weight.trails for s in weight.shards},
        is_statistic=spec.role == "statistic",
    )


def check_weights(path: Path, manifest: Manifest, model: nn.Module) -> None:
    """Compare shapes, shards and slots of a checkpoint's weights and statistics with a model's.

    Raises:
        CheckpointError: With every difference.
    """
    problems = []
    for name, weight in (weights_of(model) | statistics_of(model)).items():
        if name not in manifest.weights:
            problems.append(f"{path}: has no {'statistic' if isinstance(weight, Statistic) else 'weight'} {name}")
            continue
        saved, now = manifest.weights[name].description(), weight_entry(weight).description()
        problems += [
            f"{path}: {name}: {key} is {saved[key]} there and {now[key]} here" for key in now if saved[key] != now[key]
        ]
    if problems:
        raise CheckpointError("\n".join(problems))


def read_slots(reader: FragmentReader, weight: Weight, states: Collection[str]) -> Slots:
    """Read all that is held here of one weight, on the host.

    Args:
        reader: Of the checkpoint, which :func:`check_weights` found to fit.
        weight: Says which trails and shards are held; it is not changed.
        states: Which of the checkpoint's states to read.

    Raises:
        CheckpointError: A fragment is missing or not what the manifest says.
    """
    spec = weight.spec
    shape = (len(weight.trails), weight.num_slots)
    index = torch.empty(shape, dtype=torch.int64) if spec.is_sparse else None
    slots = {part: torch.empty(shape) for part in states}
    for trail in weight.trails:
        for shard in weight.shards:
            fragment = reader.read(spec.name, trail, shard, states)
            for part, tensor in slots.items():
                weight.fragment(tensor, trail, shard).copy_(torch.from_numpy(fragment[part]))
            if index is not None:
                positions = torch.from_numpy(fragment["positions"]).long()
                weight.fragment(index, trail, shard).copy_(flat_index(spec, weight.shards, shard, positions))
    return Slots(index, slots)


def load_statistics(reader: FragmentReader, model: nn.Module) -> None:
    """Put a checkpoint's statistics into a model; raises as :func:`read_slots`."""
    for name, statistic in statistics_of(model).items():
        for trail in statistic.trails:
            for shard in statistic.shards:
                part = statistic.shard(trail, shard)
                values = torch.from_numpy(reader.read(name, trail, shard, ("value",))["value"])
                part.copy_(values.view(part.shape))


@torch.no_grad()
def load_values(path: Path, manifest: Manifest, model: nn.Module) -> None:
    """Put a checkpoint's topologies, values and statistics into a model, without the moments.

    Args:
        path: The checkpoint, whose files were verified.
        manifest: Its manifest.
        model: Built from the checkpoint's config.

    Raises:
        CheckpointError: It is of another model, or a fragment is not what the manifest says.
    """
    check_weights(path, manifest, model)
    with FragmentReader(path, manifest) as reader:
        load_statistics(reader, model)
        for weight in weights_of(model).values():
            index, states = read_slots(reader, weight, ("value",))
            if index is not None:
                weight.set_index(index.to(weight.values.device))
            weight.values.copy_(weight.from_slots(states["value"].to(weight.values.device)))
