"""Between a checkpoint and the weights of a model: which fit each other, and what of it goes where.

Knows no ranks, no optimizer and no DeepSpeed: whoever only computes with a trained model (inference, export) reads its
weights with this, and so does a run that goes on.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import nn

from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.checkpoint.manifest import FragmentEntry, Manifest, WeightEntry
from nt_dist.config import Config
from nt_dist.config.differences import differences
from nt_dist.config.settings import AVERAGE
from nt_dist.config.stages import stage_at
from nt_dist.errors import CheckpointError
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.sparsity.pruning import pruned
from nt_dist.sparsity.statistic import LocalState, Statistic
from nt_dist.sparsity.weight import Weight


def check_config(path: Path, manifest: Manifest, config: Config, resuming: bool) -> None:
    """Compare a checkpoint's configuration with that of a run; its schedule counts, too, where the run goes on.

    Its density is then that of the run at the checkpoint's step.

    Raises:
        CheckpointError: It is of another model, or of a schedule that ``run.allow_schedule_change`` does not allow.
    """
    if resuming:
        config = stage_at(config, manifest.training_state.step)
    try:
        identity, schedule = differences(manifest.config, config)
    except (TypeError, ValueError) as error:  # values of types that no setting has
        raise CheckpointError(f"{path}: malformed: its configuration cannot be compared: {error}") from error
    new = "run.dir=FOLDER begins a new run"
    if identity:
        rule = "a checkpoint of another model" + f"; {new}" * resuming
        raise CheckpointError("\n".join([f"{path}: {rule}", *identity]))
    if schedule and resuming and not config.run.allow_schedule_change:
        rule = "the schedule differs from the checkpoint's; run.allow_schedule_change=true goes on all the same"
        raise CheckpointError("\n".join([f"{path}: {rule}, {new}", *schedule]))


def weight_entry(weight: LocalState, file: str = "") -> WeightEntry:
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


def _check_weights(path: Path, manifest: Manifest, model: nn.Module, prunes: bool) -> None:
    """Compare shapes, shards and slots of a checkpoint's weights and statistics with a model's, maybe with fewer."""
    problems = []
    for name, weight in (weights_of(model) | statistics_of(model)).items():
        if name not in manifest.weights:
            problems.append(f"{path}: has no {'statistic' if isinstance(weight, Statistic) else 'weight'} {name}")
            continue
        saved, now = manifest.weights[name].description(), weight_entry(weight).description()
        if prunes and all(there >= here for there, here in zip(saved["slots"], now["slots"], strict=False)):
            now |= {key: saved[key] for key in ("slots", "sparse")}
        problems += [
            f"{path}: {name}: {key} is {saved[key]} there and {now[key]} here" for key in now if saved[key] != now[key]
        ]
    if problems:
        raise CheckpointError("\n".join(problems))


@torch.no_grad()
def read_weights(
    path: Path, manifest: Manifest, model: nn.Module, moments: Sequence[str] = (), prunes: bool = False
) -> Iterator[tuple[Weight, dict[str, torch.Tensor]]]:
    """Put a checkpoint's statistics and topologies into a model; yield its weights, one by one, with their state.

    That is "value" and each of ``moments``, fp32 and shaped like ``weight.values``; a moment that the checkpoint lacks
    is 0, an average the value. The checkpoint's files were verified; the model may be the part of it held here. With
    ``prunes`` it may have fewer slots than the checkpoint: the largest weights stay.

    Raises:
        CheckpointError: It is of another model, or a fragment is missing or not what the manifest says.
    """
    _check_weights(path, manifest, model, prunes)
    with FragmentReader(path, manifest) as reader:
        for name, statistic in statistics_of(model).items():
            saved = [state for state in manifest.states_of(name) if state in ("value", *moments)]
            states = {state: torch.empty_like(statistic.values) for state in saved} | {"value": statistic.values}
            for trail, shard in product(statistic.trails, statistic.shards):
                for state, values in reader.read(name, trail, shard, saved).items():
                    part = statistic.block(states[state], trail, shard)
                    part.copy_(torch.from_numpy(values).view(part.shape))
            statistic.average = states.get(AVERAGE, statistic.values)
        for weight in weights_of(model).values():
            yield weight, _read_weight(reader, weight, ("value", *moments))


def _read_weight(reader: FragmentReader, weight: Weight, states: Sequence[str]) -> dict[str, torch.Tensor]:
    """Set the topology of one weight; return its states."""
    spec, device = weight.spec, weight.values.device
    slots = torch.zeros(len(states), len(weight.trails), weight.num_slots)
    positions = torch.empty(slots.shape[1:], dtype=torch.int64)
    saved = [state for state in states if state in reader.manifest.states_of(spec.name)]
    for trail, shard in product(weight.trails, weight.shards):
        arrays = reader.read(spec.name, trail, shard, saved)
        fragment = {part: torch.from_numpy(array) for part, array in arrays.items()}
        if len(fragment["value"]) > spec.slots(shard):
            fragment = pruned(spec, shard, fragment)
        for state in saved:
            weight.fragment(slots[states.index(state)], trail, shard).copy_(fragment[state])
        if spec.is_sparse:
            weight.fragment(positions, trail, shard).copy_(fragment["positions"])
    if AVERAGE in states and AVERAGE not in saved:
        slots[states.index(AVERAGE)] = slots[states.index("value")]
    if spec.is_sparse:
        weight.set_positions(positions.to(device))
    return {state: weight.from_slots(row.to(device)) for state, row in zip(states, slots, strict=True)}


@torch.no_grad()
def load_values(path: Path, manifest: Manifest, model: nn.Module, averaged: bool = False) -> None:
    """Put a checkpoint's topologies, values (or averages) and statistics into a model; see :func:`read_weights`."""
    for weight, state in read_weights(path, manifest, model, (AVERAGE,) if averaged else ()):
        weight.values.copy_(state[AVERAGE if averaged else "value"])
    for statistic in statistics_of(model).values():
        statistic.values.copy_(statistic.average)
