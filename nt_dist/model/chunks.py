"""Output matrix and losses together, some positions at a time: the logits of a micro-batch never stand whole.

What a chunk's loss says of the output matrix' input and of the matrix itself is computed right after its logits, which
are then gone (as in Liger's fused linear cross-entropy, Hsu et al., arXiv 2410.10989, section 3.2): no product more
than before. That takes losses whose gradients are known but for a factor a trail; where the trails' mean has a loss of
its own, logits are computed again in backward. T trails, N positions, H hidden size, V classes held here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nt_dist.model.functions import is_eager_cpu
from nt_dist.model.layers import Linear, add_product, multiply
from nt_dist.model.place import Place
from nt_dist.sparsity.weight import Weight

# Logits of all trails held here that stand at once: on GPUs many enough for a product that keeps one busy.
LOGITS_AT_ONCE = {"cpu": 1 << 25, "cuda": 1 << 26}

Labels = tuple[torch.Tensor, torch.Tensor]  # targets and their weights, as Place.trail_losses takes them


def num_chunks(logits: int, device_type: str) -> int:
    """Return in how many chunks a micro-batch of so many logits, over all trails held here, has its losses computed."""
    return -(-logits // LOGITS_AT_ONCE.get(device_type, LOGITS_AT_ONCE["cuda"]))


class ChunkedOutput(nn.Module, ABC):
    """A last layer whose one matrix is large enough to be worth the trouble."""

    matrix: Linear
    place: Place

    @abstractmethod
    def state(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the matrix reads [T, B, S, H]."""

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of what the matrix gives."""
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [T, B, S, V] of x [T, B, S, H]."""
        return self.finish(self.matrix(self.state(x)))

    def losses(self, x: torch.Tensor, labels: Labels, joint_mean: str, smoothing: float) -> torch.Tensor:
        """Return the sums that :meth:`Place.trail_losses` gives for the logits of x."""
        x, weight = self.state(x), self.matrix.weight
        logits = len(weight.trails) * labels[0].numel() * weight.local_shape[0]
        count = num_chunks(logits, "cpu" if is_eager_cpu(x.device) else "cuda")
        if count == 1:
            return self.place.trail_losses(self.finish(self.matrix(x)), *labels, joint_mean, smoothing)
        x, labels = x.flatten(1, 2)[:, None], tuple(each.reshape(1, -1) for each in labels)  # [T, 1, N, H], [1, N]
        size = -(-x.shape[2] // count)
        if torch.compiler.is_compiling():
            parts = zip(x.split(size, 2), *(each.split(size, 1) for each in labels), strict=True)
            one = partial(self._chunk, joint_mean, smoothing)
            return torch.stack([checkpoint(one, *part, use_reentrant=False) for part in parts]).sum(0)
        how = _How(self, labels, joint_mean, smoothing, size)
        at_once = not joint_mean and not weight.collecting and torch.is_grad_enabled()
        return weight(lambda weight, x: _Losses.apply(x, weight.values, weight, how, at_once), x)

    def _chunk(self, joint_mean: str, smoothing: float, x: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        return self.place.trail_losses(self.finish(self.matrix(x)), *labels, joint_mean, smoothing)


class _How(NamedTuple):
    """All that is no tensor to be differentiated."""

    layer: ChunkedOutput
    labels: Labels
    joint_mean: str
    smoothing: float
    size: int  # positions of a chunk

    def sums(self, logits: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        """Those of one chunk's logits [T, n, V]."""
        layer = self.layer
        return layer.place.trail_losses(layer.finish(logits[:, None]), *labels, self.joint_mean, self.smoothing)

    def parts(self, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the chunks of tensors [T, 1, N, H], as [T, n, H], and of the labels."""
        rows = (each[:, 0].split(self.size, 1) for each in tensors)
        return zip(*rows, *(each.split(self.size, 1) for each in self.labels), strict=True)


class _Losses(torch.autograd.Function):
    """Sums of token losses [T], or [T + 1]; ``at_once``: their gradients are made with them and only scaled later."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, values: torch.Tensor, weight: Weight, how: _How, at_once: bool
    ) -> torch.Tensor:
        ctx.values, ctx.weight, ctx.how, ctx.at_once = values, weight, how, at_once
        if at_once:
            sums, *gradients = _gradients(x, values, weight, how)
            ctx.save_for_backward(*gradients)
            return sums
        ctx.save_for_backward(x)
        product, matrix = _product(weight, values, x)
        chunks = how.parts(x)
        return sum(how.sums(product(rows, matrix), *labels) for rows, *labels in chunks)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scaled in place: autograd so refuses a second backward pass."""
        if ctx.at_once:
            found = [each.mul_(gradient.view(-1, *[1] * (each.dim() - 1))) for each in ctx.saved_tensors]
        else:
            _, *found = _gradients(*ctx.saved_tensors, ctx.values, ctx.weight, ctx.how, gradient)
        return *found, None, None, None


def _product(weight: Weight, values: torch.Tensor, x: torch.Tensor) -> tuple[Callable[..., torch.Tensor], torch.Tensor]:
    """Return what gives logits [T, n, V] of rows [T, n, H] and a matrix, and that one."""
    own = weight.linear(x.device)
    if own:
        return lambda rows, matrix: own.apply(rows, matrix, weight), values.detach()
    return lambda rows, matrix: multiply(rows, matrix.mT), weight.build(values)


def _gradients(
    x: torch.Tensor, values: torch.Tensor, weight: Weight, how: _How, gradient: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Return the sums and, for their gradient, by default 1, those of x and of the values."""
    product, matrix = _product(weight, values, x)
    is_own = weight.linear(x.device) is not None
    of_x, of_matrix, sums = torch.empty_like(x), torch.zeros_like(matrix), 0.0
    for rows, of_rows, *labels in how.parts(x, of_x):
        leaf = rows.detach().requires_grad_(), matrix.detach().requires_grad_()
        with torch.set_grad_enabled(is_own):
            logits = product(*leaf)
        inputs = leaf if is_own else (logits.requires_grad_(),)
        with torch.enable_grad():
            found = how.sums(logits, *labels)
        gradients = torch.autograd.grad(found, inputs, torch.ones_like(found) if gradient is None else gradient)
        sums = sums + found.detach()
        if is_own:
            of_rows.copy_(gradients[0])
            of_matrix += gradients[1]
        else:
            of_rows.copy_(multiply(gradients[0], matrix))
            add_product(of_matrix, gradients[0].mT, rows)
    return sums, of_x, of_matrix if is_own else weight.take_gradient(of_matrix, may_overwrite=True)
