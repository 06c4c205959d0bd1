"""What multiplies by a weight: layers that ask one, whatever its storage, for its dense tensor while they need it.

T trails, B samples of a batch, S positions.
"""

from collections.abc import Callable
from functools import partial

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

    def forward(self, x: torch.Tensor, is_turned: bool = False) -> torch.Tensor:
        """Transform x [T or 1, B, S, in] → [T, B, S, out], features first in memory if ``is_turned`` and that helps."""
        return products(x, self)[0] if self.builds(x.device) else self.weight(_own_product, x, is_turned)

    def builds(self, device: torch.device) -> bool:
        """Say whether it multiplies there by the weight's dense tensor."""
        return self.weight.linear(device) is None

    def lay_out(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [T or 1, B, S, in] as products read it: once for several matrices of the same kind."""
        if self.weight.linear(x.device) is None:
            return x
        return features_first(x.flatten(1, 2)).unflatten(1, x.shape[1:-1])


def products(x: torch.Tensor, *matrices: Linear) -> list[torch.Tensor]:
    """Return what each of ``matrices``, all with as many trails, makes of x [T or 1, B, S, in].

    Where all build dense tensors, the products of backward themselves add up what they say of x.
    """
    if not all(matrix.builds(x.device) for matrix in matrices):
        return [matrix(x, is_turned=True) for matrix in matrices]
    weights = [matrix.weight for matrix in matrices]
    product = partial(_multiplied, weights)
    for weight in weights:
        product = partial(_within, weight, product)
    return [each.unflatten(1, x.shape[1:-1]) for each in product(_rows(x, weights[0]))]


def _within(weight: Weight, product: Callable[..., tuple], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """ZeRO 3 has a weight's values here only within a call of it, and in that call's backward pass."""
    return weight(lambda _, rows: product(rows), rows)


def _multiplied(weights: list[Weight], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return _Products.apply(rows, weights, *(weight.values for weight in weights))


def _own_product(weight: Weight, x: torch.Tensor, is_turned: bool) -> torch.Tensor:
    result = weight.linear(x.device).apply(_rows(x, weight), weight.values, weight, is_turned)
    return result.unflatten(1, x.shape[1:-1])


def _rows(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    return x.expand(len(weight.trails), *x.shape[1:]).flatten(1, 2)


class _Products(torch.autograd.Function):
    """x · Wᵀ for x [T, N, in] and each W [T, out, in], which is built anew in backward instead of being kept.

    The Parameters themselves are kept, not saved tensors: under ZeRO 3 their data is gathered again before backward.
    """

    @staticmethod
    def forward(ctx, x, weights, *values):
        ctx.save_for_backward(x)
        ctx.weights, ctx.values = weights, values
        return tuple(multiply(x, weight.build(own).mT) for weight, own in zip(weights, values, strict=True))

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        needs_x, _, *needs_values = ctx.needs_input_grad
        grad_x, grad_values = None, [None] * len(gradients)
        for number, (weight, gradient) in enumerate(zip(ctx.weights, gradients, strict=True)):
            if needs_x:
                grad_x = add_product(grad_x, gradient, weight.build(ctx.values[number]))
            if needs_values[number]:
                grad_values[number] = weight.take_gradient(multiply(gradient.mT, x), may_overwrite=True)
        return grad_x, None, *grad_values


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


def add_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return what :func:`multiply` does, added to ``total`` in its place where there is one."""
    if total is None:
        return multiply(left, right)
    if not is_eager_cpu(left.device):
        return total.baddbmm_(left, right)
    for each in zip(total, left, right, strict=True):
        each[0].addmm_(*each[1:])
    return total


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
