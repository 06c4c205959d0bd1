"""Running statistics follow a step's: the same on every rank that holds a copy, in every layout.

DeepSpeed neither sums nor compares buffers. Here each statistic moves once an optimizer step, towards the mean of what
all micro-batches of all data ranks have added; after a step that was not applied it stays.
"""

import math
from collections.abc import Collection

import torch

from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.statistic import Statistic


@torch.no_grad()
def update_statistics(statistics: Collection[Statistic], mesh: Mesh, applied: bool) -> None:
    """Move the statistics on by one step. A collective of all ranks; what was added is used up."""
    for in_trail in (False, True):
        some = [each for each in statistics if each.spec.in_trail == in_trail and each.step_mean is not None]
        if applied and some:
            axes = mesh.sample_axes(in_trail)
            means = mesh.all_reduce(torch.cat([each.step_mean.flatten() for each in some]), axes)
            means /= math.prod(getattr(mesh, axis).degree for axis in axes)
            if not in_trail and not mesh.splits_trunk:  # copies that two GPUs made may differ by a bit
                mesh.broadcast(means, ("trail",))
            for each, mean in zip(some, means.split([each.values.numel() for each in some]), strict=True):
                each.values.lerp_(mean.view_as(each.values), each.momentum)
        for each in some:
            each.clear()
