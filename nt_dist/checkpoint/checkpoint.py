"""Saving and loading a run in a form that knows no layout (docs/design.md §7).

A checkpoint holds, for every weight, trail and topology shard, the active positions, the fp32 values and the
optimizer's moments, of every statistic the values, and beside them where the run stands. Every rank writes the
fragments that it owns into one file and reads the fragments that it needs from any: storage, ZeRO stage, precision,
mesh and number of ranks may all be other ones.

A save has three parts, so that the second can run beside the training: :func:`collect` copies this rank's fragments to
host memory (collective), :func:`write_part` writes them (no communication), :func:`commit` makes a checkpoint of all
parts by one rename (collective); saving.py does that. Until that rename nothing is there, and after it everything is.

Whatever one rank finds wrong is an error on all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nt_dist
from nt_dist.checkpoint import folder as checkpoint_folder
from nt_dist.checkpoint.find import find, on_main, verify
from nt_dist.checkpoint.fragments import (
    FragmentReader,
    topology_checksum,
    values_problem,
    write_file,
    write_fragments,
)
from nt_dist.checkpoint.manifest import (
    CONFIG,
    FileEntry,
    Manifest,
    Progress,
    WeightEntry,
    read_manifest,
)
from nt_dist.checkpoint.weights import (
    check_config,
    check_weights,
    load_statistics,
    load_values,
    read_slots,
    weight_entry,
)
from nt_dist.config import Config
from nt_dist.engine.optimizer_state import OptimizerState, State
from nt_dist.errors import CheckpointError
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.weight import Weight

__all__ = [
    "Progress",
    "Snapshot",
    "check_config",
    "collect",
    "commit",
    "find",
    "finish",
    "load",
    "save",
    "verify",
    "write_part",
]


@dataclass(frozen=True)
class Snapshot:
    """What one rank adds to a checkpoint, in host memory and no longer tied to the model.

    Attributes:
        rank: The rank, which names its file.
        tensors: Fragments by key; none if this rank owns none.
        manifest: Everything but files; of the fragments only this rank's.
    """

    rank: int
    tensors: dict[str, np.ndarray]
    manifest: Manifest

    @property
    def file_name(self) -> str:
        """Name of the file with this rank's fragments."""
        return _file_of(self.rank)


def _file_of(rank: int) -> str:
    return f"state-{rank:05d}.safetensors"


# -- saving ----------------------------------------------------------------------------------------------------


def save(
    folder: Path | str,
    config: Config,
    mesh: Mesh,
    model: nn.Module,
    optimizer_state: OptimizerState,
    progress: Progress,
) -> Path:
    """Write a checkpoint of the run as it stands; delete the older ones that ``run.keep`` does not keep. Collective.

    Args:
        folder: The folder of checkpoints, ``<run.dir>/checkpoints``.
        config: The run's configuration.
        mesh: The ranks.
        model: The model; every rank has its part of it.
        optimizer_state: The masters and moments.
        progress: Where the run stands.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: On all ranks, if any of them could not write, or if a value is not finite. The checkpoints that
            were there still are, and nothing half-written stays behind.
    """
    folder = Path(folder)
    snapshot = collect(config, mesh, model, optimizer_state, progress)
    writing = agree(mesh, lambda: checkpoint_folder.begin(folder, progress.step), CheckpointError, only_main=True)
    return finish(folder, writing, config, mesh, snapshot, lambda: write_part(writing, snapshot))


def finish(
    folder: Path,
    writing: Path,
    config: Config,
    mesh: Mesh,
    snapshot: Snapshot,
    written: Callable[[], dict[str, FileEntry]],
) -> Path:
    """Make a checkpoint of what ``written`` says that each rank has written, or clear it away; see :func:`save`."""
    try:
        return commit(folder, writing, config, mesh, snapshot, agree(mesh, written, CheckpointError))
    except CheckpointError:
        if mesh.is_main:
            checkpoint_folder.give_up(writing)
        raise


def collect(
    config: Config, mesh: Mesh, model: nn.Module, optimizer_state: OptimizerState, progress: Progress
) -> Snapshot:
    """Copy the fragments that this rank owns to host memory. Collective.

    The training stands still meanwhile, so what can be done later, checksums and checks, is left to
    :func:`write_part`.
    """
    weights = weights_of(model)
    writers = _writers(weights, mesh)
    tensors, entries = {}, {}
    for name, weight in weights.items():
        state = optimizer_state.read(weight)  # on all data ranks together, whoever keeps it
        if writers[name] == mesh.data.rank and mesh.place.owns(weight):
            entries[name] = weight_entry(weight, _file_of(mesh.rank))
            _collect_weight(name, weight, state, entries[name], tensors)
        del state
    for name, statistic in statistics_of(model).items():
        if mesh.data.rank == 0 and mesh.place.owns(statistic):
            entries[name] = weight_entry(statistic, _file_of(mesh.rank))
            for key in entries[name].fragments:
                values = statistic.shard(*map(int, key.split("/")))
                tensors[f"{name}/{key}/value"] = values.numpy(force=True).flatten()  # a copy
    layout = {
        "ranks": mesh.world_size,
        "pipe": mesh.pipe.degree,
        "data": mesh.data.degree,
        "trail": mesh.trail.degree,
        "tensor": mesh.tensor.degree,
        "zero_stage": config.zero_stage,
        "precision": config.train.precision,
    }
    written_by, moments = nt_dist.__version__, optimizer_state.moments
    manifest = Manifest(0, "", written_by, progress, moments, layout, config.to_dict(), {}, entries)
    return Snapshot(mesh.rank, tensors, manifest)


def write_part(writing: Path, snapshot: Snapshot) -> dict[str, FileEntry]:
    """Write a snapshot's fragments into the temporary folder, and their checksums into its manifest; no communication.

    Returns:
        The file's entry by its name; empty if this rank owns no fragments.

    Raises:
        CheckpointError: It cannot be written, or a value or moment is not finite; names the weight.
    """
    problems = _check(snapshot)
    if problems:
        raise CheckpointError("\n".join(["not saved: the weights are no longer numbers", *problems]))
    if not snapshot.tensors:
        return {}
    return {snapshot.file_name: write_fragments(writing / snapshot.file_name, snapshot.tensors)}


def commit(
    folder: Path, writing: Path, config: Config, mesh: Mesh, snapshot: Snapshot, file: dict[str, FileEntry]
) -> Path:
    """Make a checkpoint of what all ranks have written; see :func:`save`. Collective."""
    parts = mesh.gather_objects((file, snapshot.manifest.weights))

    def finish() -> Path:
        files = {name: entry for files, _ in parts for name, entry in files.items()}
        files[CONFIG] = write_file(writing / CONFIG, [config.to_toml().encode()])
        weights = _merge([weights for _, weights in parts])
        path = checkpoint_folder.commit(folder, writing, replace(snapshot.manifest, files=files, weights=weights))
        checkpoint_folder.prune(folder, config.run.keep, config.run.keep_every)
        return path

    return agree(mesh, finish, CheckpointError, only_main=True)


def _writers(weights: dict[str, Weight], mesh: Mesh) -> dict[str, int]:
    """Return the data rank that writes each weight: the largest first, to whoever has least."""
    load = [0] * mesh.data.degree
    writers = {}
    for name, weight in sorted(weights.items(), key=lambda item: -item[1].active_elements):
        writers[name] = load.index(min(load))
        load[writers[name]] += weight.active_elements
    return writers


def _collect_weight(
    name: str, weight: Weight, state: State, entry: WeightEntry, tensors: dict[str, np.ndarray]
) -> None:
    """Copy one weight's fragments into ``tensors``."""
    active = weight.all_to_slots(list(state.values()))
    slots = {part: _to_host(tensor, torch.float32) for part, tensor in zip(state, active, strict=True)}
    if entry.is_sparse:
        slots["positions"] = _to_host(weight.slot_positions(), torch.int32)
    for key in entry.fragments:
        trail, shard = map(int, key.split("/"))
        for part, tensor in slots.items():
            tensors[f"{name}/{key}/{part}"] = weight.fragment(tensor, trail, shard).numpy()


def _check(snapshot: Snapshot) -> list[str]:
    """Fill in the topologies' checksums; return what is wrong with values and moments."""
    problems = []
    for name, entry in snapshot.manifest.weights.items():
        for key, fragment in entry.fragments.items():
            states = snapshot.manifest.states_of(name)
            arrays = {part: snapshot.tensors.get(f"{name}/{key}/{part}") for part in ("positions", *states)}
            for part in states:
                if problem := values_problem(part, arrays[part]):
                    problems.append(f"{name}/{key}/{part}: {problem}")
            if entry.is_sparse:
                entry.fragments[key] = replace(fragment, checksum=topology_checksum(arrays["positions"]))
    return problems


def _to_host(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()  # already a copy: OptimizerState.read gives nothing else


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
) -> Progress:
    """Put a checkpoint's topologies, values and moments into a model, whatever layout either has. Collective.

    Args:
        path: The checkpoint's folder.
        config: The configuration of the run that goes on.
        mesh: The ranks.
        model: The model; every rank reads what it holds.
        optimizer_state: Where masters and moments go; None for the weights alone, as an evaluation wants them (then
            schedule settings are not compared).
        data_digest: Digest of the prepared training data; None not to compare it.
        verified: The files' hashes were checked just now, by :func:`find` or :func:`verify`.

    Returns:
        Where the run stood.

    Raises:
        CheckpointError: On all ranks: damaged, of another model or of other data; names file or key.
    """
    path = Path(path)
    manifest = on_main(mesh, lambda: read_manifest(path)) if verified else verify(path, mesh)

    def apply() -> None:
        check_config(path, manifest, config, resuming=optimizer_state is not None)
        saved = manifest.progress.data_digest
        if data_digest is not None and saved != data_digest:
            raise CheckpointError(f"{path}: trained on other data: digest {saved}, now {data_digest}")
        if optimizer_state is None:
            load_values(path, manifest, model)
            return
        check_weights(path, manifest, model)
        with FragmentReader(path, manifest) as reader:
            load_statistics(reader, model)
            for weight in weights_of(model).values():
                _load_weight(reader, weight, optimizer_state)
        optimizer_state.step = manifest.progress.adam_step

    agree(mesh, apply, CheckpointError)
    return manifest.progress


@torch.no_grad()
def _load_weight(reader: FragmentReader, weight: Weight, optimizer_state: OptimizerState) -> None:
    """Read all that this rank holds of one weight and put it in its place."""
    device = weight.values.device
    states = ("value", *optimizer_state.moments)
    index, slots = read_slots(reader, weight, [name for name in states if name in reader.manifest.states])
    if index is not None:
        weight.set_index(index.to(device))
    nothing = torch.zeros_like(slots["value"])  # where the checkpoint's optimizer had no such moment
    optimizer_state.write(weight, {name: weight.from_slots(slots.get(name, nothing).to(device)) for name in states})
