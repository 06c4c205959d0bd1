"""Batch norm (Ioffe and Szegedy, arXiv 1502.03167) that is the same in every layout.

Means and variances are those of ``model.norm_batch`` pictures, a "ghost batch" (Hoffer et al., arXiv 1705.08741, §4),
whatever the micro-batch; the running ones follow, once an optimizer step, the mean over all ghost batches of its global
batch (see nt_dist/engine/statistics.py). Each trail has its own.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.config.settings import Config
from nt_dist.model.trails import MakeWeight


class BatchNorm(nn.Module):
    """One batch norm a trail: scale and shift, weights; mean and variance, statistics."""

    def __init__(self, config: Config, prefix: str, make: MakeWeight):
        super().__init__()
        self.size, self.eps = config.model.norm_batch, config.model.norm_eps
        self.scale, self.shift = make(f"{prefix}.scale"), make(f"{prefix}.shift")
        self.mean, self.variance = make(f"{prefix}.mean"), make(f"{prefix}.variance")
        for statistic in (self.mean, self.variance):
            statistic.momentum = config.model.norm_momentum

    def per_trail(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return for each trail what normalizes its [B, C, H, W].

        That is by its own ghost batches in training, else by the running statistics.
        """
        # fp32 throughout: in bf16, torch's kernels take fp32 parameters and give fp32 statistics
        of_trails = zip(self.scale.dense().float(), self.shift.dense().float(), strict=True)
        normalize = self._by_batch if self.training else self._by_running
        return [partial(normalize, row, *each) for row, each in enumerate(of_trails)]

    def _by_running(self, row: int, scale: torch.Tensor, shift: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        mean, variance = self.mean.values[row], self.variance.values[row]
        return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, self.eps)

    def _by_batch(self, row: int, scale: torch.Tensor, shift: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        assert len(x) % self.size == 0, f"{len(x)} pictures are no whole number of batches of {self.size}"
        normalized = []
        # a batch norm's whole micro-batch is not split: backward would copy its gradient
        for some in x.split(self.size) if len(x) > self.size else [x]:
            (mean, share), (variance, _) = self.mean.accumulate(row), self.variance.accumulate(row)
            normalized.append(F.batch_norm(some, mean, variance, scale, shift, True, share, self.eps))
        return normalized[0] if len(normalized) == 1 else torch.cat(normalized)
