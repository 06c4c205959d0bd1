"""A run that starts from another program's checkpoint: weights pruned to the config's density, saved as step 0.

From a dense model, trunk and trails are its first and last blocks, every trail the same; noise makes them differ. In
each topology shard the largest weights stay (magnitude pruning: Zhu and Gupta, arXiv 1710.01878, §3).
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import CHECKPOINTS, checkpoints
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config.settings import Config
from nt_dist.engine.optimizer_state import State
from nt_dist.errors import CheckpointError, ConfigError
from nt_dist.model.foreign import Foreign
from nt_dist.model.trails import TrailsModel, build_model, statistics_of, weights_of
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.streams import normal, stream_keys
from nt_dist.sparsity.weight import Fragments, Weight, padding_mask


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

    ``mesh`` is of one rank, ``data`` what the family opened; for ``noise`` see :func:`fill`.

    Raises:
        DataError: See :meth:`Foreign.check_data`.
        CheckpointError: A tensor holds something that is no number, or the checkpoint cannot be written.
    """
    foreign.check_data(config, data)
    model = build_model(config, device="meta").to_empty(device="cpu")
    pruned = fill(model, foreign, config, noise)
    extra = {"tokens": 0, "regrown": 0.0, "drop_fraction": 0.0, **data.identity}
    progress, untrained = TrainingState(0, 0, 0, data.digest, extra), _Untrained(config.train.moments)
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
        dense[(slice(None), *map(slice, spec.real_shape))] = torch.stack(tensors)
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
    for statistic in statistics_of(model).values():
        statistic.values.copy_(torch.stack(_read(foreign, config, statistic.spec)))
    return Pruned(kept, found, lost)


def _read(foreign: Foreign, config: Config, spec: WeightSpec) -> list[torch.Tensor]:
    """What each trail is taken from, fp32."""
    tensors = []
    for key in (foreign.key(config, spec, trail) for trail in range(spec.trails)):
        tensors.append(foreign.read(key).float())
        if not tensors[-1].isfinite().all():
            count = int((~tensors[-1].isfinite()).sum())
            raise CheckpointError(f"{foreign.path}: {key}: {count} values are not finite")
    return tensors


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
