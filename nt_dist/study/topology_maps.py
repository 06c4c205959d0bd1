"""Where the active weights of a checkpoint lie, as maps small enough to be drawn."""

import math
from pathlib import Path

import numpy as np
import torch

from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.config import Config
from nt_dist.model.weights import weight_specs
from nt_dist.sparsity.spec import WeightSpec, flat_index
from nt_dist.training.tensorboard import shrunk

SIDE = 48  # fields a side, at most


def topology_shares(checkpoint: Path, config: Config) -> dict[str, np.ndarray]:
    """Read the topologies of the sparse matrices in the two layers at either end, which are the most unlike.

    Returns:
        By weight name: the share of positions that are active, over all trails, in each field of a grid of at most
        SIDE × SIDE laid over the matrix without its padding; a kernel's rows are what makes up one output.
    """
    specs = weight_specs(config).values()
    layers = list(dict.fromkeys(spec.layer for spec in specs))
    ends = {*layers[:2], *layers[-2:]}
    with FragmentReader(checkpoint, read_manifest(checkpoint)) as reader:
        return {spec.name: _shares(reader, spec) for spec in specs if spec.is_sparse and spec.layer in ends}


def _shares(reader: FragmentReader, spec: WeightSpec) -> np.ndarray:
    active = torch.zeros(math.prod(spec.shape))
    every = range(spec.shards)
    for trail in range(spec.trails):
        for shard in every:
            positions = torch.from_numpy(reader.read(spec.name, trail, shard, ())["positions"]).long()
            active[flat_index(spec, every, shard, positions)] += 1 / spec.trails  # no position stands there twice
    real = active.view(spec.shape).narrow(spec.cut_axis, 0, spec.valid)
    return shrunk(real.flatten(1)[None], SIDE)[0].numpy()
