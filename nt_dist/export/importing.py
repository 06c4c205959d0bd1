"""A run that starts from another program's checkpoint: weights pruned to the config's density, saved as step 0.

From a dense LLaMA, trunk and trails are its first and last blocks, every trail the same; noise makes them differ. In
each topology shard the largest weights stay (magnitude pruning: Zhu and Gupta, arXiv 1710.01878, §3).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import checkpoints
from nt_dist.checkpoint.manifest import Progress
from nt_dist.config import Config
from nt_dist.engine.optimizer_state import State
from nt_dist.errors import CheckpointError, ConfigError, DataError
from nt_dist.export.foreign import Foreign, problems
from nt_dist.model.trails import TrailsModel, build_model, weights_of
from nt_dist.model.weights import real_shape
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.spec import WeightSpec, flat_index, padding_mask, to_blocks
from nt_dist.sparsity.storage import Weight
from nt_dist.sparsity.streams import normal, stream_keys
from nt_dist.text.corpus import OpenData
from nt_dist.training.loop import CHECKPOINTS


@dataclass(frozen=True)
class Imported:
    """What became of a foreign checkpoint.

    Attributes:
        path: The new checkpoint.
        kept: Non-zero weights that stayed, over all trails.
        found: Non-zero weights that there were.
        largest_lost: The largest magnitude among those that went.
    """

    path: Path
    kept: int
    found: int
    largest_lost: float


class _Untrained:
    """What OptimizerState is to a save, for a model that no optimizer has seen: no moments."""

    step = 0

    def __init__(self, moments: tuple[str, ...]):
        self.moments = moments

    def read(self, weight: Weight) -> State:
        """Return a weight's values with moments of 0."""
        values = weight.values.detach().clone()
        return {"value": values, **{name: torch.zeros_like(values) for name in self.moments}}


def check(foreign: Foreign, config: Config, noise: float) -> None:
    """Refuse, before any work, an import that cannot be.

    Args:
        foreign: What to import.
        config: The run to start.
        noise: See :func:`import_run`.

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


def import_run(foreign: Foreign, config: Config, mesh: Mesh, data: OpenData, noise: float = 0.0) -> Imported:
    """Save a foreign checkpoint as step 0 of a run, which train.py then continues.

    Args:
        foreign: Checked by :func:`check`.
        config: The run's.
        mesh: One rank.
        data: The run's prepared data.
        noise: Standard deviation of what is added to each matrix of a trail before pruning, as a share of that
            matrix's own; drawn from the run's seed, by weight, trail and shard.

    Raises:
        CheckpointError: A tensor cannot be read or holds no numbers, or the checkpoint cannot be written.
    """
    model = build_model(config, device="meta").to_empty(device="cpu")
    kept, found, lost = fill(model, foreign, config, noise)
    extra = {"tokens": 0, "regrown": 0.0, "drop_fraction": 0.0, **data.identity}
    progress = Progress(0, 0, 0, data.digest, extra)
    path = checkpoint.save(
        Path(config.run.dir) / CHECKPOINTS, config, mesh, model, _Untrained(config.train.moments), progress
    )
    return Imported(path, kept, found, lost)


@torch.no_grad()
def fill(model: TrailsModel, foreign: Foreign, config: Config, noise: float = 0.0) -> tuple[int, int, float]:
    """Put a foreign checkpoint's weights into a model; return kept and found counts and the largest one lost."""
    kept = found = 0
    lost = 0.0
    for weight in weights_of(model).values():
        spec = weight.spec
        rows = [_dense(foreign, config, spec, trail, noise) for trail in range(spec.trails)]
        blocks = to_blocks(spec, torch.stack(rows))  # [trails, shards, elements]
        index = torch.empty(spec.trails, weight.num_slots, dtype=torch.int64)
        values = torch.empty(spec.trails, weight.num_slots)
        for trail in range(spec.trails):
            for shard, start, stop in weight.slot_ranges():
                block = blocks[trail, shard]
                positions = largest(spec, shard, block)
                index[trail, start:stop] = flat_index(spec, weight.shards, shard, positions)
                values[trail, start:stop] = block[positions]
                rest = block.abs().index_fill(0, positions, 0.0)
                lost = max(lost, float(rest.max()))
        kept += int(values.count_nonzero())
        found += int(blocks.count_nonzero())
        weight.set_index(index)
        weight.values.copy_(weight.from_slots(values))
    return kept, found, lost


def largest(spec: WeightSpec, shard: int, block: torch.Tensor) -> torch.Tensor:
    """Return the positions of a shard's slots: the largest magnitudes, the first of equal ones; ascending, int64."""
    if not spec.is_sparse:
        return torch.arange(spec.shard_elements)
    score, padding = block.abs(), padding_mask(spec, shard)
    if padding is not None:
        score[padding] = -1.0
    return score.sort(descending=True, stable=True).indices[: spec.slots(shard)].sort().values


def _dense(foreign: Foreign, config: Config, spec: WeightSpec, trail: int, noise: float) -> torch.Tensor:
    """Return one trail's dense tensor with padding, fp32 [*shape]."""
    key = foreign.key(config, spec, trail)
    tensor = foreign.read(key).float()
    if not tensor.isfinite().all():
        raise CheckpointError(f"{foreign.path}: {key}: {int((~tensor.isfinite()).sum())} values are not finite")
    whole = tensor.new_zeros(spec.shape)
    whole[tuple(slice(size) for size in real_shape(spec))] = tensor
    if noise and spec.in_trail and spec.role != "scale":
        blocks = to_blocks(spec, whole[None])[0]  # [shards, elements]
        at = torch.arange(spec.shard_elements)
        keys = [stream_keys([(config.train.seed, "import noise", spec.name, trail, s)]) for s in range(spec.shards)]
        drawn = torch.stack([normal(key, at) for key in keys]).float() * (noise * tensor.std())
        for shard in range(spec.shards):
            padding = padding_mask(spec, shard)
            if padding is not None:
                drawn[shard, padding] = 0.0
        whole = _from_blocks(spec, blocks + drawn)
    return whole


def _from_blocks(spec: WeightSpec, blocks: torch.Tensor) -> torch.Tensor:
    """Invert to_blocks for one trail that holds all shards: [shards, elements] to [*shape]."""
    cut = [*spec.shape[: spec.cut_axis], spec.shard_length, *spec.shape[spec.cut_axis + 1 :]]
    return blocks.view(spec.shards, *cut).movedim(0, spec.cut_axis).reshape(spec.shape)
