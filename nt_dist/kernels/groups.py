"""Products with matrices whose outputs share inputs in groups, in the time of their active entries, T trails at once.

The active entries of the trails, ``values`` [T, slots], are small dense matrices; ``index`` [T, units] says which
inputs each has. :class:`Tiles` says where these matrices are.

What is read is widened to fp32 and, for tensor cores, narrowed again to what it was: nothing in a compiled kernel, and
exact in Triton's interpreter, which computes wrongly in bf16. Sums are fp32 everywhere.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

TOKENS, INPUTS = 64, 32  # of a tile, that are worked on at once


class Tiles(NamedTuple):
    """Where matrices are, the same in all trails: each is cut into tiles of some of its rows.

    ``table``, int32 [P, tiles, 6], has for each its first output, number of outputs, first value, width, first place in
    ``index``, and what to add to what stands there. Outputs of a tile have the inputs of all P parts of it.
    """

    table: torch.Tensor
    height: int  # outputs of a tile, at most: a power of 2, at least 16
    width: int  # inputs of a tile in one part, at most


def tile_height(group: int) -> int:
    """Return :attr:`Tiles.height` for matrices of ``group`` rows."""
    return min(max(triton.next_power_of_2(group), 16), 128)


@triton.jit
def _read(pointers, mask, KIND: tl.constexpr):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32).to(KIND)


@triton.jit
def _tile(table, tiles, part, tile):
    row = table + (part * tiles + tile) * 6
    return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)


@triton.jit
def _forward(
    x, values, index, table, result,
    parts, tiles, tokens, slots, units, x_trail, x_input, x_token, result_trail, result_token,
    KIND: tl.constexpr, PRECISION: tl.constexpr, HEIGHT: tl.constexpr, TOKENS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    tile, trail = tl.program_id(0), tl.program_id(2).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    row, each = tl.arange(0, HEIGHT), tl.arange(0, INPUTS)
    output, height, _, _, _, _ = _tile(table, tiles, 0, tile)
    sums = tl.full((HEIGHT, TOKENS), 0.0, tl.float32)
    for part in range(parts):
        _, _, value, width, unit, shift = _tile(table, tiles, part, tile)
        for start in range(0, width, INPUTS):
            at = start + each
            inputs = shift + tl.load(index + trail * units + unit + at, mask=at < width, other=0).to(tl.int64)
            here = x + trail * x_trail + inputs[:, None] * x_input + token[None, :] * x_token
            gathered = _read(here, (at < width)[:, None] & (token < tokens)[None, :], KIND)
            entries = values + trail * slots + value + row[:, None] * width + at[None, :]
            matrix = _read(entries, (row < height)[:, None] & (at < width)[None, :], KIND)
            sums = tl.dot(matrix, gathered, sums, input_precision=PRECISION)
    there = result + trail * result_trail + token[None, :] * result_token + (output + row)[:, None]
    tl.store(there, sums.to(result.dtype.element_ty), mask=(row < height)[:, None] & (token < tokens)[None, :])


@triton.jit
def _gradient_of_x(
    gradient, values, index, table, of_x,
    parts, tiles, tokens, slots, units, gradient_trail, gradient_token, gradient_output, x_trail, x_input, x_token,
    KIND: tl.constexpr, PRECISION: tl.constexpr, HEIGHT: tl.constexpr, TOKENS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    tile, trail = tl.program_id(0), tl.program_id(2).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    row, each = tl.arange(0, HEIGHT), tl.arange(0, INPUTS)
    output, height, _, _, _, _ = _tile(table, tiles, 0, tile)
    here = gradient + trail * gradient_trail + token[None, :] * gradient_token
    here += (output + row).to(tl.int64)[:, None] * gradient_output
    of_rows = _read(here, (row < height)[:, None] & (token < tokens)[None, :], KIND)
    for part in range(parts):
        _, _, value, width, unit, shift = _tile(table, tiles, part, tile)
        for start in range(0, width, INPUTS):
            at = start + each
            entries = values + trail * slots + value + row[None, :] * width + at[:, None]
            matrix = _read(entries, (at < width)[:, None] & (row < height)[None, :], KIND)
            sums = tl.dot(matrix, of_rows, input_precision=PRECISION)
            inputs = shift + tl.load(index + trail * units + unit + at, mask=at < width, other=0).to(tl.int64)
            there = of_x + trail * x_trail + inputs[:, None] * x_input + token[None, :] * x_token
            tl.atomic_add(there, sums, mask=(at < width)[:, None] & (token < tokens)[None, :], sem="relaxed")


@triton.jit
def _gradient_of_values(
    gradient, x, index, table, of_values,
    steps, tiles, tokens, slots, units, gradient_trail, gradient_token, gradient_output, x_trail, x_input, x_token,
    KIND: tl.constexpr, PRECISION: tl.constexpr, HEIGHT: tl.constexpr, TOKENS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    tile, part, trail = tl.program_id(0), tl.program_id(1) // steps, tl.program_id(2).to(tl.int64)
    row = tl.arange(0, HEIGHT)
    output, height, value, width, unit, shift = _tile(table, tiles, part, tile)
    at = tl.program_id(1) % steps * INPUTS + tl.arange(0, INPUTS)
    inputs = shift + tl.load(index + trail * units + unit + at, mask=at < width, other=0).to(tl.int64)
    sums = tl.full((HEIGHT, INPUTS), 0.0, tl.float32)
    for start in range(0, tokens, TOKENS):
        token = (start + tl.arange(0, TOKENS)).to(tl.int64)
        here = gradient + trail * gradient_trail + token[None, :] * gradient_token
        here += (output + row).to(tl.int64)[:, None] * gradient_output
        of_rows = _read(here, (row < height)[:, None] & (token < tokens)[None, :], KIND)
        here = x + trail * x_trail + inputs[None, :] * x_input + token[:, None] * x_token
        gathered = _read(here, (token < tokens)[:, None] & (at < width)[None, :], KIND)
        sums = tl.dot(of_rows, gathered, sums, input_precision=PRECISION)
    there = of_values + trail * slots + value + row[:, None] * width + at[None, :]
    tl.store(there, sums.to(of_values.dtype.element_ty), mask=(row < height)[:, None] & (at < width)[None, :])


def forward(x: torch.Tensor, values: torch.Tensor, index: torch.Tensor, tiles: Tiles, result: torch.Tensor) -> None:
    """Write x [T, N, in] times the transposed matrices into ``result`` [T, N, out]; other outputs are left alone."""
    (trails, tokens, _), (parts, count, _) = x.shape, tiles.table.shape
    sizes = parts, count, tokens, values.shape[1], index.shape[1]
    strides = x.stride(0), x.stride(2), x.stride(1), *result.stride()[:2]
    grid = count, triton.cdiv(tokens, TOKENS), trails
    _forward[grid](x, values, index, tiles.table, result, *sizes, *strides, **_constants(x, tiles))


def gradient_of_x(
    gradient: torch.Tensor, values: torch.Tensor, index: torch.Tensor, tiles: Tiles, num_inputs: int
) -> torch.Tensor:
    """Return that of x [T, N, in], of runs of N values, for that of the result [T, N, out].

    Groups that share an input add to it in any order: two runs may differ by the rounding of fp32.
    """
    (trails, tokens, _), (parts, count, _) = gradient.shape, tiles.table.shape
    of_x = torch.zeros(trails, num_inputs, tokens, dtype=torch.float32, device=gradient.device)
    sizes = parts, count, tokens, values.shape[1], index.shape[1]
    strides = *gradient.stride(), *of_x.stride()
    grid = count, triton.cdiv(tokens, TOKENS), trails
    _gradient_of_x[grid](gradient, values, index, tiles.table, of_x, *sizes, *strides, **_constants(gradient, tiles))
    return of_x.to(gradient.dtype).mT


def gradient_of_values(
    gradient: torch.Tensor, x: torch.Tensor, index: torch.Tensor, tiles: Tiles, of_values: torch.Tensor
) -> None:
    """Write that of active entries only, for that of the result [T, N, out], into ``of_values`` [T, slots]."""
    (trails, tokens, _), (parts, count, _) = gradient.shape, tiles.table.shape
    steps = triton.cdiv(tiles.width, INPUTS)
    sizes = steps, count, tokens, of_values.shape[1], index.shape[1]
    strides = *gradient.stride(), x.stride(0), x.stride(2), x.stride(1)
    grid = count, parts * steps, trails
    _gradient_of_values[grid](gradient, x, index, tiles.table, of_values, *sizes, *strides, **_constants(x, tiles))


def _constants(like: torch.Tensor, tiles: Tiles) -> dict:
    kinds = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return {
        "KIND": kinds.get(like.dtype, tl.float32) if like.is_cuda else tl.float32,
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        "HEIGHT": tiles.height,
        "TOKENS": TOKENS,
        "INPUTS": INPUTS,
    }
