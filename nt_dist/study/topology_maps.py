"""Where the active weights of a checkpoint lie, as maps small enough to be drawn."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.config import Config
from nt_dist.model.weights import real_shape, weight_specs
from nt_dist.sparsity.spec import WeightSpec, flat_index

SIDE = 48  # fields a side, at most


def topology_shares(checkpoint: Path, config: Config) -> dict[str, np.ndarray]:
    """Read the topologies of a checkpoint's sparse matrices: first block and last, embedding and output.

    Returns:
        By weight name: the share of positions that are active, over all trails, in each field of a grid of at most
        SIDE × SIDE laid over the matrix without its padding.

    Raises:
        CheckpointError: Something in it cannot be used.
    """
    ends = "blocks.0.", f"blocks.{config.model.num_layers - 1}."
    drawn = [
        spec
        for name, spec in weight_specs(config).items()
        if spec.is_sparse and (name.startswith(ends) or name in ("embedding", "output"))
    ]
    with FragmentReader(checkpoint, read_manifest(checkpoint)) as reader:
        return {spec.name: _shares(reader, spec) for spec in drawn}


def _shares(reader: FragmentReader, spec: WeightSpec) -> np.ndarray:
    active = torch.zeros(math.prod(spec.shape))
    every = range(spec.shards)
    for trail in range(spec.trails):
        for shard in every:
            positions = torch.from_numpy(reader.positions(spec.name, trail, shard)).long()
            active[flat_index(spec, every, shard, positions)] += 1 / spec.trails  # no position stands there twice
    rows, columns = real_shape(spec)
    real = active.view(spec.shape)[:rows, :columns]
    return F.adaptive_avg_pool2d(real[None], [min(side, SIDE) for side in real.shape])[0].numpy()
