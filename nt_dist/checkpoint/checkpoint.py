"""Saving and loading a run in a form that knows no layout (docs/design.md §7).

Every rank writes the fragments that it owns into one file and reads the fragments that it needs from any: storage, ZeRO
stage, precision, mesh and number of ranks may all be other ones.

A save has three parts, so that the second can run beside the training (``saving.py``): :func:`collect` copies this
rank's fragments to host memory (collective), :func:`write_part` writes them (no communication), :func:`commit` makes a
checkpoint of all parts by one rename (collective). Until that rename nothing is there, and after it everything is.

Whatever one rank finds wrong is an error on all of them.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nt_dist
from nt_dist.checkpoint import folder as checkpoint_folder
from nt_dist.checkpoint.folder import on_main, verify
from nt_dist.checkpoint.fragments import topology_checksum, values_problem, write_file, write_fragments
from nt_dist.checkpoint.manifest import CONFIG, Manifest, TrainingState, WeightEntry, read_manifest
from nt_dist.checkpoint.weights import check_config, load_values, read_weights, weight_entry
from nt_dist.config import Config
from nt_dist.config.settings import AVERAGE
from nt_dist.config.stages import stage_at
from nt_dist.engine.optimizer_state import OptimizerState, State
from nt_dist.errors import CheckpointError, DiskError
from nt_dist.files import FileEntry
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import AXES, Mesh
from nt_dist.sparsity.weight import Weight

Part = tuple[dict[str, FileEntry], dict[str, WeightEntry]]  # a rank's file, if it has one, and its fragments in it


@dataclass(frozen=True)
class Snapshot:
    """What one rank adds to a checkpoint, in host memory and no longer tied to the model."""

    file: str  # name of the rank's file
    tensors: dict[str, np.ndarray]  # fragments by key; none if this rank owns none
    manifest: Manifest  # everything but files; of the fragments only this rank's
    checked: list[str] = field(default_factory=list)  # keys of fragments, as their writing gets on

    def done(self, writing: Path) -> tuple[int, int]:
        """Return how far its writing has come: fragments checked, bytes on the disk."""
        try:
            return len(self.checked), os.stat(writing / self.file).st_size
        except OSError:  # nothing yet
            return len(self.checked), 0


# -- saving ----------------------------------------------------------------------------------------------------


def save(
    folder: Path | str,
    config: Config,
    mesh: Mesh,
    model: nn.Module,
    optimizer_state: OptimizerState,
    training_state: TrainingState,
) -> Path:
    """Write a checkpoint of the run as it stands; delete the older ones that ``run.keep`` does not keep. Collective.

    Every rank has its part of the model; ``folder`` is that of all checkpoints, ``<run.dir>/checkpoints``. Returns the
    new checkpoint's folder.

    Raises:
        CheckpointError: On all ranks, if any of them could not write, or if a value is not finite. The checkpoints that
            were there still are, and nothing half-written stays behind.
    """
    snapshot = collect(config, mesh, model, optimizer_state, training_state)
    writing = begin(Path(folder), mesh, snapshot)
    return commit(writing, config, mesh, snapshot, lambda: write_part(writing, snapshot))


def begin(folder: Path, mesh: Mesh, snapshot: Snapshot) -> Path:
    """Make the temporary folder that a snapshot is written into; see :func:`save`. Collective."""
    return on_main(mesh, lambda: checkpoint_folder.begin(folder, snapshot.manifest.training_state.step))


def collect(
    config: Config, mesh: Mesh, model: nn.Module, optimizer_state: OptimizerState, training_state: TrainingState
) -> Snapshot:
    """Copy the fragments that this rank owns to host memory. Collective.

    The training stands still meanwhile, so what can be done later, checksums and checks, is left to
    :func:`write_part`.
    """
    weights, file = weights_of(model), f"state-{mesh.rank:05d}.safetensors"
    writers, tensors, entries = _writers(weights, mesh), {}, {}
    for name, weight in weights.items():
        state = optimizer_state.read(weight)  # on all data ranks together, whoever keeps it
        if writers[name] == mesh.data.rank and mesh.place.owns(weight):
            entries[name] = weight_entry(weight, file)
            _collect_weight(weight, state, tensors)
        del state
    for name, statistic in statistics_of(model).items():
        if mesh.data.rank == 0 and mesh.place.owns(statistic):
            entries[name] = weight_entry(statistic, file)
            states = {"value": statistic.values}
            states |= {AVERAGE: statistic.average} if AVERAGE in optimizer_state.moments else {}
            for trail, shard, state in product(statistic.trails, statistic.shards, states):
                values = statistic.block(states[state], trail, shard)
                tensors[f"{name}/{trail}/{shard}/{state}"] = values.numpy(force=True).flatten()  # a copy
    layout = {"ranks": mesh.world_size, **{axis: getattr(mesh, axis).degree for axis in AXES}}
    layout |= {"zero_stage": config.zero_stage, "precision": config.train.precision}
    run = (nt_dist.__version__, training_state, optimizer_state.moments, layout, config.to_dict())
    return Snapshot(file, tensors, Manifest(0, "", *run, files={}, weights=entries))


def _writers(weights: dict[str, Weight], mesh: Mesh) -> dict[str, int]:
    """Return the data rank that writes each weight: the largest first, to whoever has least."""
    load = [0] * mesh.data.degree
    writers = {}
    for name, weight in sorted(weights.items(), key=lambda item: -item[1].active_elements):
        writers[name] = load.index(min(load))
        load[writers[name]] += weight.active_elements
    return writers


def _collect_weight(weight: Weight, state: State, tensors: dict[str, np.ndarray]) -> None:
    active = weight.all_to_slots(list(state.values()))
    slots = {part: tensor.detach().to(torch.float32) for part, tensor in zip(state, active, strict=True)}
    if weight.spec.is_sparse:
        slots["positions"] = weight.slot_positions().to(torch.int32)
    for part, tensor in slots.items():
        host = tensor.cpu().contiguous()  # already a copy: OptimizerState.read gives nothing else
        for trail, shard in product(weight.trails, weight.shards):
            fragment = weight.fragment(host, trail, shard)
            tensors[f"{weight.spec.name}/{trail}/{shard}/{part}"] = fragment.numpy()


def write_part(writing: Path, snapshot: Snapshot) -> dict[str, FileEntry]:
    """Write a snapshot's fragments into the temporary folder, and their checksums into its manifest; no communication.

    Returns the file's entry by its name; nothing if this rank owns no fragments.

    Raises:
        CheckpointError: It cannot be written, or a value or moment is not finite; names the weight.
    """
    problems = []
    for name, entry in snapshot.manifest.weights.items():
        for key, fragment in entry.fragments.items():
            for state in snapshot.manifest.states_of(name):
                if problem := values_problem(state, snapshot.tensors[f"{name}/{key}/{state}"]):
                    problems.append(f"{name}/{key}/{state}: {problem}")
            if entry.is_sparse:
                checksum = topology_checksum(snapshot.tensors[f"{name}/{key}/positions"])
                entry.fragments[key] = replace(fragment, checksum=checksum)
            snapshot.checked.append(key)
    if problems:
        raise CheckpointError("\n".join(["not saved: the weights are no longer numbers", *problems]))
    return {snapshot.file: write_fragments(writing / snapshot.file, snapshot.tensors)} if snapshot.tensors else {}


def commit(
    writing: Path, config: Config, mesh: Mesh, snapshot: Snapshot, written: Callable[[], dict[str, FileEntry]]
) -> Path:
    """Make a checkpoint of what ``written`` says that each rank has written, or clear it away. Collective.

    Returns and raises as :func:`save`.
    """

    try:
        file = agree(mesh, written, DiskError)
        parts = mesh.gather_objects((file, snapshot.manifest.weights))
        return on_main(mesh, lambda: put_in_place(writing, config, snapshot, parts))
    except CheckpointError:
        if mesh.is_main:
            shutil.rmtree(writing, ignore_errors=True)  # what stays, the next save clears away
        raise


def put_in_place(writing: Path, config: Config, snapshot: Snapshot, parts: list[Part]) -> Path:
    """Make a checkpoint of the parts of all ranks, whose files are on the disk, and delete old ones; returns it.

    One rank does it, with its own snapshot. Raises as :func:`save`.
    """
    files = {name: entry for files, _ in parts for name, entry in files.items()}
    files[CONFIG] = write_file(writing / CONFIG, [config.to_toml().encode()])
    weights = _merge([weights for _, weights in parts])
    path = checkpoint_folder.commit(writing, replace(snapshot.manifest, files=files, weights=weights))
    checkpoint_folder.prune(path.parent, config.run.keep, config.run.keep_every)
    return path


def _merge(parts: list[dict[str, WeightEntry]]) -> dict[str, WeightEntry]:
    """Join what the ranks hold of each weight; every fragment must be there once."""
    merged: dict[str, WeightEntry] = {}
    for weights in parts:
        for name, entry in weights.items():
            whole = merged.setdefault(name, replace(entry, fragments={}))
            assert whole.description() == entry.description(), name
            assert not whole.fragments.keys() & entry.fragments.keys(), f"{name} is written twice"
            whole.fragments.update(entry.fragments)
    for name, entry in merged.items():
        assert sorted(entry.fragments) == sorted(entry.expected_fragments()), f"{name} is not written whole"
    return merged


# -- loading ---------------------------------------------------------------------------------------------------


def load(
    path: Path | str,
    config: Config,
    mesh: Mesh,
    model: nn.Module,
    optimizer_state: OptimizerState | None,
    *,
    data_digest: str | None = None,
    verified: bool = False,
) -> TrainingState:
    """Put a checkpoint's weights, moments and statistics into a model, whatever layout either has. Collective.

    Returns where the run stood.

    Args:
        optimizer_state: Where masters and moments go; None for the weights alone, as an evaluation wants them: averaged
            if ``config`` says so (and schedule settings are not compared).
        data_digest: Digest of the prepared training data; None not to compare it.
        verified: The files' hashes were checked just now, by :func:`nt_dist.checkpoint.folder.find` or ``verify``.

    Raises:
        CheckpointError: On all ranks: damaged, of another model or of other data; names file or key.
    """
    path = Path(path)
    manifest = on_main(mesh, lambda: read_manifest(path)) if verified else verify(path, mesh)

    def apply() -> None:
        check_config(path, manifest, config, resuming=optimizer_state is not None)
        saved = manifest.training_state.data_digest
        if data_digest is not None and saved != data_digest:
            remedy = "; run.allow_schedule_change=true goes on with these, from their first sample"
            problem = f"{path}: trained on other data: digest {saved}, now {data_digest}"
            raise CheckpointError(problem + (remedy if optimizer_state is not None else ""))
        if optimizer_state is None:
            load_values(path, manifest, model, averaged=AVERAGE in config.train.moments)
            return
        prunes = stage_at(config, manifest.training_state.step).sparsity.density > config.sparsity.density
        with mesh.working("reading") as beat:
            for weight, state in read_weights(path, manifest, model, optimizer_state.moments, prunes):
                optimizer_state.write(weight, state)
                beat()
        optimizer_state.step = manifest.training_state.adam_step

    agree(mesh, apply, CheckpointError)
    return manifest.training_state
