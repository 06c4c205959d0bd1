"""A run that starts from another program's checkpoint: weights pruned to the config's density, saved as step 0.

From a dense model, trunk and trails are its first and last blocks, every trail the same; noise makes them differ. An
ensemble, the paper's or one that we exported, keeps its trails. In each topology shard the largest weights stay
(magnitude pruning: Zhu and Gupta, arXiv 1710.01878, §3).
"""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import CHECKPOINTS, checkpoints
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config.family import Family
from nt_dist.config.settings import AVERAGE, Config
from nt_dist.config.stages import stage_at
from nt_dist.engine.optimizer_state import State
from nt_dist.errors import CheckpointError, ConfigError
from nt_dist.export.hf.sparse_neurotrails import FILE as SPARSE
from nt_dist.files import check_plain
from nt_dist.model.foreign import Foreign
from nt_dist.model.trails import TrailsModel, build_model, statistics_of, weights_of
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.pruning import largest
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.streams import normal, stream_keys
from nt_dist.sparsity.weight import Fragments, Weight, padding_mask

_NO_WEIGHT = re.compile(r"rotary_emb\.|\.inv_freq$|\.num_batches_tracked$")
Shapes = dict[str, tuple[int, ...]]


def open_foreign(path: Path, family: Family) -> Foreign:
    """Open a folder with config.json and *.safetensors, or, where the layout may be so, pytorch_model.bin.

    Nothing in it is run. A CheckpointError where it cannot be read so, or is in no layout that the family knows.
    """
    try:
        check_plain(path / "config.json")
        settings = json.loads((path / "config.json").read_bytes())
        if not isinstance(settings, dict):
            raise ValueError("it must hold an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"--model {path}: config.json cannot be read: {reason}") from None
    files = sorted(each for each in path.glob("*.safetensors") if each.name != SPARSE)  # what --sparse adds
    pickled = path / "pytorch_model.bin"
    if not files and not pickled.is_file():
        raise CheckpointError(f"--model {path}: holds no *.safetensors and no pytorch_model.bin")
    shapes, read = _safetensors(files) if files else _pickled(pickled)
    shapes = {name: shape for name, shape in shapes.items() if not _NO_WEIGHT.search(name)}
    layouts = family.foreign()
    layout = next((each for each in layouts if each.fits(shapes)), None)
    if layout is None:
        known = " nor ".join(each.sign for each in layouts)
        raise CheckpointError(f"--model {path}: neither {known}; its first tensors: {', '.join(sorted(shapes)[:3])}")
    if not files and not layout.may_be_pickled:
        raise CheckpointError(f"--model {path}: {layout.title} is read from *.safetensors only")
    return layout(path, settings, shapes, read)


def _safetensors(files: list[Path]) -> tuple[Shapes, Callable[[str], torch.Tensor]]:
    shapes, opened, files_of = {}, {}, {}
    for file in files:
        try:
            check_plain(file)
            tensors = safe_open(file, framework="pt")
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                if name in shapes:
                    where = f"{file.parent}: {name} is in {files_of[name]} and in {file.name}"
                    raise CheckpointError(f"{where}; move away the file that is not meant")
                files_of[name] = file.name
                shapes[name], opened[name] = tuple(tensors.get_slice(name).get_shape()), tensors
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
    return shapes, lambda name: opened[name].get_tensor(name)


def _pickled(file: Path) -> tuple[Shapes, Callable[[str], torch.Tensor]]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: is no file of tensors alone: {reason}") from None
    said = tensors.items() if isinstance(tensors, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in said):
        raise CheckpointError(f"{file}: must hold a state dict, tensors by name")
    return {name: tuple(each.shape) for name, each in tensors.items()}, tensors.__getitem__


class Pruned(NamedTuple):
    """Non-zero weights that stayed, over all trails, those that there were, and the largest magnitude that went."""

    kept: int
    found: int
    largest_lost: float


def check(foreign: Foreign, config: Config, noise: float) -> None:
    """Refuse, before any work, an import that cannot be: a ConfigError has everything in which model and config differ,
    a CheckpointError says that the run has checkpoints already."""
    found = foreign.problems(config)
    if not 0 <= noise < float("inf"):
        found.append(f"--noise {noise:g} must be at least 0")
    if found:
        raise ConfigError(found)
    if checkpoints(Path(config.run.dir) / CHECKPOINTS):
        raise CheckpointError(
            f"run.dir = {config.run.dir!r}: has checkpoints already; an import starts a run and replaces none"
        )


def import_run(foreign: Foreign, config: Config, mesh: Mesh, data: Any, noise: float = 0.0) -> tuple[Path, Pruned]:
    """Save a foreign checkpoint, checked by :func:`check`, as step 0 of a run, which train.py then continues.

    ``mesh`` is of one rank, ``data`` what the family opened; for ``noise`` see :func:`fill`. A CheckpointError where a
    tensor holds something that is no number, or the checkpoint cannot be written.
    """
    foreign.check_data(config, data)
    config = stage_at(config, 0)
    model = build_model(config, device="meta").to_empty(device="cpu")
    pruned = fill(model, foreign, config, noise)
    extra = {"tokens": 0, "regrown": 0.0, "drop_fraction": 0.0, **data.identity}
    progress, moments = TrainingState(0, 0, 0, data.digest, extra), config.train.moments

    def read(weight: Weight) -> State:
        values = weight.values.detach().clone()
        return {"value": values} | {name: values if name == AVERAGE else torch.zeros_like(values) for name in moments}

    # what OptimizerState is to a save, of a model that no optimizer has seen
    untrained = SimpleNamespace(step=0, moments=moments, read=read)
    return checkpoint.save(Path(config.run.dir) / CHECKPOINTS, config, mesh, model, untrained, progress), pruned


@torch.no_grad()
def fill(model: TrailsModel, foreign: Foreign, config: Config, noise: float = 0.0) -> Pruned:
    """Put a foreign checkpoint's weights, pruned, and its statistics into a model.

    ``noise`` is the standard deviation of what is added to each matrix of a trail before pruning, as a share of that
    matrix's own; it is drawn from the run's seed, by weight, trail and shard.
    """
    kept = found = 0
    lost = 0.0
    for weight in weights_of(model).values():
        spec = weight.spec
        tensors = _read(foreign, config, spec)
        dense = torch.zeros(spec.trails, *spec.shape)  # with padding
        dense[(slice(None), *map(slice, spec.real_shape))] = tensors
        is_noisy = noise and spec.in_trail and not spec.is_vector
        for fragments in weight.groups():
            blocks = weight.blocks(dense, fragments)  # [R, elements]
            if is_noisy:
                deviations = noise * tensors.flatten(1).std(1)[[trail for trail, _ in fragments], None]
                blocks += deviations * _noise(spec, fragments, config.train.seed)
            positions = largest(spec, fragments, blocks)
            values = blocks.gather(1, positions)
            weight.set_active(fragments, positions)
            weight.write(weight.values, fragments, positions, values)
            kept += int(values.count_nonzero())
            found += int(blocks.count_nonzero())
            lost = max(lost, float(blocks.abs().scatter_(1, positions, 0.0).max()))
    for statistic in statistics_of(model).values():
        statistic.values.copy_(_read(foreign, config, statistic.spec))
    return Pruned(kept, found, lost)


def _read(foreign: Foreign, config: Config, spec: WeightSpec) -> torch.Tensor:
    """What the trails are taken from, fp32 [T, ...]."""
    keys = [foreign.key(config, spec, trail) for trail in range(spec.trails)]
    tensors = [foreign.read(key).float() for key in keys]
    for key, tensor in zip(keys, tensors, strict=True):
        if count := int((~tensor.isfinite()).sum()):
            raise CheckpointError(f"{foreign.path}: {key}: {count} values are not finite")
    return torch.stack(tensors)


def _noise(spec: WeightSpec, fragments: Fragments, seed: int) -> torch.Tensor:
    """Return standard normal numbers for shards of equal padding, 0 in it: fp32 [R, elements]."""
    keys = stream_keys([(seed, "import noise", spec.name, *fragment) for fragment in fragments])[:, None]
    drawn = normal(keys, torch.arange(spec.shard_elements)).float()
    padding = padding_mask(spec, fragments[0][1])
    return drawn if padding is None else drawn.masked_fill_(padding, 0.0)
