"""Convolutions whose kernels' topology is one of groups, in the time of their active entries: :mod:`grouped` of pixels.

An input of a group is an input channel at one place of the kernel: the channel's plane, moved. A plane is gathered from
the padded picture itself, for the unfolded one would cost as much as the whole convolution.
"""

from collections.abc import Iterator

import torch


class GroupedConvolution(torch.autograd.Function):
    """One trail's convolution, padded by half of the kernel, of x [B, in, H, W] in channels_last.

    In backward its values are taken from the weight: under ZeRO 3 they are gathered again before.
    """

    @staticmethod
    def forward(ctx, values, weight, row, stride, x):
        ctx.save_for_backward(x)
        ctx.weight, ctx.row, ctx.stride = weight, row, stride
        side, planes = weight.local_shape[-1], _padded(x, weight)
        height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
        shape = len(x), weight.local_shape[0], height, width
        result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        outputs = result.permute(0, 2, 3, 1).view(-1, shape[1])
        for piece in weight.pieces(row):
            gathered = _gather(planes, piece.columns, side, stride, (len(x), height, width))
            torch.mm(gathered.mT, piece.gather(values).mT, out=outputs[:, piece.rows])
        return result  # itself, and no view: layers go on in its place

    @staticmethod
    def backward(ctx, gradient):
        (x,), weight, row, stride = ctx.saved_tensors, ctx.weight, ctx.row, ctx.stride
        values, side, planes = weight.values[row], weight.local_shape[-1], _padded(x, weight)
        of_values = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        of_planes = torch.zeros_like(planes) if ctx.needs_input_grad[4] else None
        if weight.collecting and of_values is not None:
            weight.collect(_dense_gradient(x, gradient, weight.local_shape, stride)[None], slice(row, row + 1))
        batch, _, height, width = gradient.shape
        of_outputs = gradient.permute(0, 2, 3, 1).flatten(0, 2).mT  # [out, N]
        for piece in weight.pieces(row):
            of_rows = of_outputs[piece.rows]
            if of_values is not None:
                gathered = _gather(planes, piece.columns, side, stride, (batch, height, width))
                piece.put(of_rows @ gathered.mT, of_values)
            if of_planes is not None:
                of_inputs = (piece.gather(values).mT @ of_rows).unflatten(1, (batch, height, width))
                for there, channels, plane in _places(of_planes, piece.columns, side, stride, (height, width)):
                    plane.index_add_(0, channels, of_inputs[there])
        of_x = None
        if of_planes is not None:
            inside = slice(side // 2, side // 2 + x.shape[2]), slice(side // 2, side // 2 + x.shape[3])
            of_x = of_planes[:, :, *inside].transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return of_values, None, None, None, of_x


def _padded(x: torch.Tensor, weight) -> torch.Tensor:
    """Return x [B, in, H, W] as [in, B, H + 2 p, W + 2 p], p being half of the kernel's side."""
    padding = weight.local_shape[-1] // 2
    planes = x.new_zeros(x.shape[1], len(x), x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
    planes[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x.transpose(0, 1)
    return planes


def _places(
    planes: torch.Tensor, columns: torch.Tensor, side: int, stride: int, sizes: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield for each place in the kernel which of the columns are there, their channels, and what all channels' planes
    [in, B, H', W'] are there, as a view."""
    channels, places = columns.long() // side**2, columns % side**2
    for place in range(side**2):
        here = (places == place).nonzero()[:, 0]
        down, right = divmod(place, side)
        height, width = (stride * (size - 1) + 1 for size in sizes)
        yield here, channels[here], planes[:, :, down : down + height : stride, right : right + width : stride]


def _gather(
    planes: torch.Tensor, columns: torch.Tensor, side: int, stride: int, sizes: tuple[int, int, int]
) -> torch.Tensor:
    """Return the columns' planes, flattened: [K, B · H' · W']."""
    gathered = planes.new_empty(len(columns), *sizes)
    for here, channels, plane in _places(planes, columns, side, stride, sizes[1:]):
        gathered[here] = plane.index_select(0, channels)
    return gathered.flatten(1)


def _dense_gradient(x: torch.Tensor, gradient: torch.Tensor, shape: tuple[int, ...], stride: int) -> torch.Tensor:
    """Return that of all entries of a kernel of this shape, whose own values do not matter."""
    sizes = [stride] * 2, [shape[-1] // 2] * 2, [1, 1], False, [0, 0], 1, [False, True, False]
    return torch.ops.aten.convolution_backward(gradient, x, x.new_empty(shape), None, *sizes)[1]
