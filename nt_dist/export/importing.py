"""A run that starts from another program's checkpoint: weights pruned to the config's density, saved as step 0.

From a dense LLaMA, trunk and trails are its first and last blocks, every trail the same; noise makes them differ. In
each topology shard the largest weights stay (magnitude pruning: Zhu and Gupta, arXiv 1710.01878, §3).
"""

from pathlib import Path
from typing import NamedTuple

import torch

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import CHECKPOINTS, checkpoints
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.engine.optimizer_state import State
from nt_dist.errors import CheckpointError, ConfigError, DataError
from nt_dist.export.foreign import Foreign, problems
from nt_dist.model.trails import TrailsModel, build_model, weights_of
from nt_dist.model.weights import real_shape
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.spec import WeightSpec, padding_mask
from nt_dist.sparsity.streams import normal, stream_keys
from nt_dist.sparsity.weight import Fragments, Weight
from nt_dist.text.corpus import OpenData


class Pruned(NamedTuple):
    """Non-zero weights that stayed, over all trails, those that there were, and the largest magnitude that went."""

    kept: int
    found: int
    largest_lost: float


class _Untrained:
    """What OptimizerState is to a save, for a model that no optimizer has seen: its moments are 0."""

    step = 0

    def __init__(self, moments: tuple[str, ...]):
        self.moments = moments

    def read(self, weight: Weight) -> State:
        values = weight.values.detach().clone()
        return {"value": values} | dict.fromkeys(self.moments, torch.zeros_like(values))


def check(foreign: Foreign, config: Config, noise: float) -> None:
    """Refuse, before any work, an import that cannot be.

    Raises:
        ConfigError: With everything in which model and config differ.
        CheckpointError: The run has checkpoints already.
    """
    found = problems(foreign, config)
    if not 0 <= noise < float("inf"):
        found.append(f"--noise {noise:g} must be at least 0")
    if found:
        raise ConfigError(found)
    if checkpoints(Path(config.run.dir) / CHECKPOINTS):
        raise CheckpointError(
            f"run.dir = {config.run.dir!r}: has checkpoints already; an import starts a run and replaces none"
        )


def check_tokenizer(foreign: Foreign, data: OpenData) -> None:
    """Refuse a run whose tokenizer is not the one that lies beside the imported model.

    Raises:
        DataError: There is a tokenizer.model, and it is another one.
    """
    theirs = foreign.path / "tokenizer.model"
    if theirs.is_file() and theirs.read_bytes() != data.tokenizer.data:
        raise DataError(
            f"data.tokenizer: {data.tokenizer.name} is not the imported model's; set data.tokenizer={theirs}"
        )


def import_run(foreign: Foreign, config: Config, mesh: Mesh, data: OpenData, noise: float = 0.0) -> tuple[Path, Pruned]:
    """Save a foreign checkpoint, checked by :func:`check`, as step 0 of a run, which train.py then continues.

    ``mesh`` is of one rank; for ``noise`` see :func:`fill`.

    Raises:
        DataError: See :func:`check_tokenizer`.
        CheckpointError: A tensor holds something that is no number, or the checkpoint cannot be written.
    """
    check_tokenizer(foreign, data)
    model = build_model(config, device="meta").to_empty(device="cpu")
    pruned = fill(model, foreign, config, noise)
    extra = {"tokens": 0, "regrown": 0.0, "drop_fraction": 0.0, **data.identity}
    progress, untrained = TrainingState(0, 0, 0, data.digest, extra), _Untrained(config.train.moments)
    return checkpoint.save(Path(config.run.dir) / CHECKPOINTS, config, mesh, model, untrained, progress), pruned


@torch.no_grad()
def fill(model: TrailsModel, foreign: Foreign, config: Config, noise: float = 0.0) -> Pruned:
    """Put a foreign checkpoint's weights, pruned, into a model.

    ``noise`` is the standard deviation of what is added to each matrix of a trail before pruning, as a share of that
    matrix's own; it is drawn from the run's seed, by weight, trail and shard.
    """
    kept = found = 0
    lost = 0.0
    for weight in weights_of(model).values():
        spec = weight.spec
        tensors = [_read(foreign, foreign.key(config, spec, trail)) for trail in range(spec.trails)]
        dense = torch.zeros(spec.trails, *spec.shape)  # with padding
        dense[(slice(None), *map(slice, real_shape(spec)))] = torch.stack(tensors)
        is_noisy = noise and spec.in_trail and not spec.is_vector
        deviations = noise * torch.stack([each.std() for each in tensors]) if is_noisy else None
        for fragments in weight.groups():
            blocks = weight.blocks(dense, fragments)  # [R, elements]
            if deviations is not None:
                drawn = _noise(spec, fragments, config.train.seed)
                blocks += drawn * deviations[[trail for trail, _ in fragments], None]
            positions = largest(spec, fragments, blocks)
            values = blocks.gather(1, positions)
            weight.set_active(fragments, positions)
            weight.write(weight.values, fragments, positions, values)
            kept += int(values.count_nonzero())
            found += int(blocks.count_nonzero())
            lost = max(lost, float(blocks.abs().scatter_(1, positions, 0.0).max()))
    return Pruned(kept, found, lost)


def _read(foreign: Foreign, key: str) -> torch.Tensor:
    tensor = foreign.read(key).float()
    if not tensor.isfinite().all():
        raise CheckpointError(f"{foreign.path}: {key}: {int((~tensor.isfinite()).sum())} values are not finite")
    return tensor


def _noise(spec: WeightSpec, fragments: Fragments, seed: int) -> torch.Tensor:
    """Return standard normal numbers for shards of equal padding, 0 in it: fp32 [R, elements]."""
    keys = stream_keys([(seed, "import noise", spec.name, *fragment) for fragment in fragments])[:, None]
    drawn = normal(keys, torch.arange(spec.shard_elements)).float()
    padding = padding_mask(spec, fragments[0][1])
    return drawn if padding is None else drawn.masked_fill_(padding, 0.0)


def largest(spec: WeightSpec, fragments: Fragments, blocks: torch.Tensor) -> torch.Tensor:
    """Return the positions, ascending, of the largest magnitudes in shards of equal slots and padding.

    The first of equal ones. ``blocks`` are the shards' entries, [R, elements]; returned is int64 [R, slots].
    """
    if not spec.is_sparse:
        return torch.arange(spec.shard_elements).expand(len(fragments), -1)
    score, padding = blocks.abs(), padding_mask(spec, fragments[0][1])
    if padding is not None:
        score[:, padding] = -1.0
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order[:, : spec.slots(fragments[0][1])].sort(dim=1).values
