"""Products with a matrix whose topology is one of groups, in the time of its active entries.

Within a group the active inputs are gathered and multiplied as a small dense matrix: on CPUs as fast as blocks of
adjacent entries, group after group; on GPUs by kernels, all groups of all trails at once.
"""

import functools
from typing import NamedTuple

import torch

from nt_dist.messages import LOGGER


class Piece(NamedTuple):
    """A group of outputs and its active inputs."""

    rows: slice  # of the local dense matrix
    columns: torch.Tensor  # K of the local dense matrix, int32
    parts: list[tuple[slice, tuple[int, int]]]  # of one trail's values, and their shapes; together [rows, K]

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return this piece [rows, K] of one trail's values."""
        parts = [values[where].view(shape) for where, shape in self.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def put(self, piece: torch.Tensor, values: torch.Tensor) -> None:
        """Write it into one trail's values."""
        widths = [width for _, (_, width) in self.parts]
        for (where, shape), part in zip(self.parts, piece.split(widths, 1), strict=True):
            values[where].view(shape).copy_(part)


class GroupedLinear(torch.autograd.Function):
    """x · Wᵀ for x [T, N, in], in the time of W's active entries.

    Of x and its gradient features come first in memory, so that what is gathered or added up are runs of N values; of
    the result where ``is_turned``, as what it becomes feature by feature is then laid out for the next product.
    """

    @staticmethod
    def forward(ctx, x, values, weight, is_turned=False):
        x = features_first(x)
        ctx.save_for_backward(x)
        ctx.values, ctx.weight = values, weight
        result = _empty_result(x, weight, is_turned)
        for row, (inputs, outputs) in enumerate(zip(x.mT, result, strict=True)):
            for piece in weight.pieces(row):
                gathered = inputs.index_select(0, piece.columns)
                if is_turned:
                    torch.mm(piece.gather(values[row]), gathered, out=outputs.mT[piece.rows])
                else:
                    torch.mm(gathered.mT, piece.gather(values[row]).mT, out=outputs[:, piece.rows])
        return result

    @staticmethod
    def backward(ctx, gradient):
        (x,), weight, values = ctx.saved_tensors, ctx.weight, ctx.values
        needs_x, needs_values, *_ = ctx.needs_input_grad
        of_x = x.new_zeros(len(x), x.shape[2], x.shape[1]) if needs_x else None
        of_values = torch.empty_like(values) if needs_values else None
        for row, (inputs, of_outputs) in enumerate(zip(x.mT, gradient.mT, strict=True)):
            if weight.collecting and needs_values:  # one after the other: a batched product is slower on CPUs
                weight.collect((of_outputs @ x[row])[None], slice(row, row + 1))
            for piece in weight.pieces(row):
                of_rows = of_outputs[piece.rows]
                if of_x is not None:
                    of_x[row].index_add_(0, piece.columns, piece.gather(values[row]).mT @ of_rows)
                if of_values is not None:
                    piece.put(of_rows @ inputs.index_select(0, piece.columns).mT, of_values[row])
        return None if of_x is None else of_x.mT, of_values, None, None


class TritonLinear(torch.autograd.Function):
    """:class:`GroupedLinear` by kernels for GPUs, whose results have tokens first always."""

    @staticmethod
    def forward(ctx, x, values, weight, is_turned=False):
        from nt_dist.kernels import groups

        x = features_first(x)
        ctx.save_for_backward(x)
        ctx.values, ctx.weight = values, weight
        result = _empty_result(x, weight, False)
        groups.forward(x, values, weight.index, weight.tiles, result)
        return result

    @staticmethod
    def backward(ctx, gradient):
        from nt_dist.kernels import groups

        (x,), weight, values = ctx.saved_tensors, ctx.weight, ctx.values
        needs_x, needs_values, *_ = ctx.needs_input_grad
        of_x = of_values = None
        if needs_x:
            of_x = groups.gradient_of_x(gradient, values, weight.index, weight.tiles, x.shape[2])
        if needs_values:
            if weight.collecting:
                weight.collect(gradient.mT @ x)
            of_values = torch.empty_like(values)
            groups.gradient_of_values(gradient, x, weight.index, weight.tiles, of_values)
        return of_x, of_values, None, None


def product_on(device: torch.device) -> type[torch.autograd.Function] | None:
    """Return what multiplies fastest there; None where that is the dense tensor."""
    if device.type == "cpu":
        return GroupedLinear
    return TritonLinear if device.type == "cuda" and _has_triton() else None


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        LOGGER.warning(
            "sparsity.structure: products on GPUs take the time of dense ones, for Triton is not installed "
            "(pip install triton)"
        )
        return False
    return True


def _empty_result(x: torch.Tensor, weight, is_turned: bool) -> torch.Tensor:
    trails, rows, outputs = *x.shape[:2], weight.local_shape[0]
    result = x.new_empty(trails, outputs, rows).mT if is_turned else x.new_empty(trails, rows, outputs)
    if weight.spec.cut_axis == 0:  # padding's outputs
        result[:, :, sum(map(weight.spec.real_rows, weight.shards)) :] = 0
    return result


def features_first(x: torch.Tensor) -> torch.Tensor:
    """Return x [T, N, in] with each feature's N values side by side in memory; trails that share theirs still do."""
    shared = x[:1] if x.stride(0) == 0 else x
    return shared.mT.contiguous().mT.expand_as(x)
