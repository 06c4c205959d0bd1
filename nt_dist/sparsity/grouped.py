"""Products with a matrix whose topology is one of groups, in the time of its active entries.

Within a group the active inputs are gathered and multiplied as a small dense matrix: on CPUs as fast as blocks of
adjacent entries. Features come first in what is multiplied, so that a gathered input is one run of memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch


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
    """x · Wᵀ for x [T, N, in], in the time of W's active entries. The result is a transposed view [T, N, out]."""

    @staticmethod
    def forward(ctx, x, values, weight):
        ctx.save_for_backward(x)
        ctx.values, ctx.weight = values, weight
        result = x.new_zeros(len(x), weight.local_shape[0], x.shape[1])  # padded outputs stay 0
        for row, (inputs, out) in enumerate(zip(_features_first(x), result, strict=True)):
            for piece in weight.pieces(row):
                torch.mm(piece.gather(values[row]), inputs.index_select(0, piece.columns), out=out[piece.rows])
        return result.mT

    @staticmethod
    def backward(ctx, gradient):
        (x,), weight, values = ctx.saved_tensors, ctx.weight, ctx.values
        needs_x, needs_values, _ = ctx.needs_input_grad
        of_x = torch.zeros_like(x.mT, memory_format=torch.contiguous_format) if needs_x else None
        of_values = torch.empty_like(values) if needs_values else None
        if weight.collecting and needs_values:
            weight.collect(torch.bmm(gradient.mT, x))
        for row, (inputs, of_outputs) in enumerate(zip(_features_first(x), _features_first(gradient), strict=True)):
            for piece in weight.pieces(row):
                of_rows = of_outputs[piece.rows]
                if of_x is not None:
                    of_x[row].index_add_(0, piece.columns, piece.gather(values[row]).mT @ of_rows)
                if of_values is not None:
                    piece.put(of_rows @ inputs.index_select(0, piece.columns).mT, of_values[row])
        return None if of_x is None else of_x.mT, of_values, None


def _features_first(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield [features, N] of each trail of x [T, N, features]; of trails that share one memory, the same."""
    same = x[0].mT.contiguous() if x.stride(0) == 0 else None
    return (each.mT.contiguous() if same is None else same for each in x)
