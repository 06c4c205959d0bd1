"""State of which a rank holds a part; and that which is no weight but is saved and compared, as a running mean."""

import torch
from torch import nn

from nt_dist.sparsity.spec import WeightSpec


class LocalState(nn.Module):
    """What this rank holds of ``spec``: global numbers of trails and shards, all by default."""

    def __init__(self, spec: WeightSpec, trails: range | None, shards: range | None):
        super().__init__()
        self.spec = spec
        self.trails = range(spec.trails) if trails is None else trails
        self.shards = range(spec.shards) if shards is None else shards
        self.local_shape = spec.local_shape(self.shards)

    def block(self, dense: torch.Tensor, trail: int, shard: int) -> torch.Tensor:
        """Return one shard of one trail of a dense tensor [T, *local_shape], as a view."""
        length = self.spec.shard_length
        return dense[trail - self.trails.start].narrow(self.spec.cut_axis, (shard - self.shards.start) * length, length)


class Statistic(LocalState):
    """A statistic: no Parameter, and in fp32 whatever its model is cast to; ``values`` are [T, *local_shape]."""

    def __init__(
        self,
        spec: WeightSpec,
        trails: range | None = None,
        shards: range | None = None,
        device: torch.device | str = "cpu",
    ):
        assert spec.role == "statistic" and spec.init in (None, 0.0), spec
        super().__init__(spec, trails, shards)
        shape = (len(self.trails), *self.local_shape)
        self.register_buffer("values", torch.full(shape, 1.0 if spec.init is None else 0.0, device=device))
        self._average: torch.Tensor | None = None
        self.momentum = 0.1  # by what share a step's mean moves the values
        self.clear()

    def clear(self) -> None:
        """Forget the batches since the last step."""
        self.step_mean: torch.Tensor | None = None  # over those batches, shaped like ``values``
        self._batches = [0] * len(self.trails)

    def accumulate(self, row: int) -> tuple[torch.Tensor, float]:
        """Count one more batch of the row-th of the trails held here.

        Returns:
            The trail's row of ``step_mean``, which the caller moves towards the batch's value, and by what share.
        """
        if self.step_mean is None:
            self.step_mean = torch.zeros_like(self.values)
        self._batches[row] += 1
        return self.step_mean[row], 1 / self._batches[row]

    @property
    def average(self) -> torch.Tensor:
        """What evaluations take, shaped like ``values``: the values themselves as long as nothing else was set."""
        return self.values if self._average is None else self._average

    @average.setter
    def average(self, average: torch.Tensor) -> None:
        self._average = average

    @torch.no_grad()
    def move_average(self, share: float) -> None:
        """Move the average by a share of its way to the values."""
        self.average = self.average.lerp(self.values, share)

    def _apply(self, fn, recurse=True):
        exact = self.values
        super()._apply(fn, recurse)
        if self.values.dtype != torch.float32:  # a cast of the whole module, maybe with a move
            self.values = exact.to(self.values.device)
        return self
