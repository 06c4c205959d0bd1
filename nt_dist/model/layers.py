"""What multiplies by a weight: layers that ask one, whatever its storage, for its dense tensor while they need it.

T trails, B samples of a batch, S positions.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.model.functions import is_eager_cpu
from nt_dist.sparsity.grouped import features_first
from nt_dist.sparsity.weight import Weight


class Linear(nn.Module):
    """x · Wᵀ, for each trail."""

    def __init__(self, weight: Weight):
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform x [T or 1, B, S, in] → [T, B, S, out]."""
        return self.weight(_linear, x)

    def lay_out(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [T or 1, B, S, in] as products read it: once for several matrices of the same kind."""
        if self.weight.linear(x.device) is None:
            return x
        return features_first(x.flatten(1, 2)).unflatten(1, x.shape[1:-1])


def _linear(weight: Weight, x: torch.Tensor) -> torch.Tensor:
    rows = x.expand(len(weight.trails), *x.shape[1:]).flatten(1, 2)
    product = weight.linear(x.device) or _Linear
    return product.apply(rows, weight.values, weight).unflatten(1, x.shape[1:-1])


class _Linear(torch.autograd.Function):
    """x · Wᵀ for x [T, N, in], with W [T, out, in] built anew in backward instead of being kept.

    The Parameter itself is kept, not a saved tensor: under ZeRO 3 its data is gathered again before backward.
    """

    @staticmethod
    def forward(ctx, x, values, weight):
        ctx.save_for_backward(x)
        ctx.values, ctx.weight = values, weight
        return multiply(x, weight.build(values).mT)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(gradient, ctx.weight.build(ctx.values))
        if ctx.needs_input_grad[1]:
            grad_values = ctx.weight.take_gradient(multiply(gradient.mT, x), may_overwrite=True)
        return grad_x, grad_values, None


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the products [T, a, c] of matrices [T, a, b] and [T, b, c], without a gradient of their own.

    On CPUs one after the other: a batched product deals whole matrices out to the threads, three to two for instance.
    """
    if not is_eager_cpu(left.device):
        return torch.bmm(left, right)
    product = left.new_empty(len(left), left.shape[1], right.shape[2])
    for each in zip(left, right, product, strict=True):
        torch.mm(each[0], each[1], out=each[2])
    return product


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add to ``total`` what :func:`multiply` returns."""
    if not is_eager_cpu(left.device):
        total.baddbmm_(left, right)
        return
    for each in zip(total, left, right, strict=True):
        each[0].addmm_(*each[1:])


class Lookup(nn.Module):
    """Rows of a table by their numbers, for each trail."""

    def __init__(self, weight: Weight):
        super().__init__()
        self.weight = weight

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Look up numbers [B, S], of all rows → [T, B, S, width]; numbers of rows that are not held here give 0."""
        return self.weight(_look_up, numbers)


def _look_up(weight: Weight, numbers: torch.Tensor) -> torch.Tensor:
    table, num_rows = weight.dense(), weight.local_shape[0]
    numbers = numbers - weight.shards.start * weight.spec.shard_length
    outside = (numbers < 0) | (numbers >= num_rows)
    inside = numbers.masked_fill(outside, 0)
    rows = torch.stack([F.embedding(inside, each) for each in table])
    return rows if num_rows == weight.spec.shape[0] else rows.masked_fill(outside[None, :, :, None], 0.0)
