"""Matrices as a bit for every entry and the values of those that are active, and products straight from that, on CPUs.

Writing text a token at a time reads every matrix once for a single row of x, and waits for the memory: what is not
stored is not waited for. The product itself is bitmap.cpp's, with AVX-512 or AVX2; where neither is, or no compiler, it
is torch's, of matrices built anew each time. Sums are fp32 in all of them.

T matrices (one a trail) of one shape; N rows of x.
"""

import ctypes
import logging
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from nt_dist.kernels.build import BuildError, load_library

PATHS = ("torch", "avx2", "avx512")  # in the order of bitmap_level's numbers
FEW = 16  # rows of x up to which a product reads bits; for more it builds rows of the matrix, some at a time
_WORD = 64
_BEHIND = 32  # values behind the last that the widest load may read
_ENTRIES_AT_ONCE = 1 << 20  # of a matrix that is built for a product
_SERIAL = 1 << 16  # entries below which threads cost more than they save
_TURNS = 5
_MOST_BETWEEN = 1 << 27  # bytes: no cache is much larger
KINDS = {torch.float32: 0, torch.bfloat16: 1}
_logger = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """Return bitmap.cpp's library, or None, with a warning the first time, where it cannot be had."""
    try:
        found = load_library("bitmap")
    except BuildError as problem:
        _logger.warning("sparse matrices have no products of their own here, and stay dense: %s", problem)
        return None
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.bitmap_multiply.argtypes = [
        *(flag, flag, pointer, pointer, pointer, number, number, number, number),
        *(pointer, number, number, pointer, flag),
    ]
    found.bitmap_expand.argtypes = [flag, flag, pointer, pointer, pointer, number, number, number, pointer, flag]
    found.bitmap_multiply.restype = found.bitmap_expand.restype = None
    return found


@cache
def fastest_path() -> str:
    """Return which of PATHS this machine has."""
    found = library()
    return PATHS[0 if found is None else found.bitmap_level()]


class Bitmap:
    """T matrices [out, in] of fp32 or bf16 values, to multiply with; without gradients of their own."""

    def __init__(self, values: torch.Tensor, active: torch.Tensor):
        """Take the values, in row-major order, of the entries that are true in ``active`` [T, out, in].

        A ValueError where their numbers differ, or their type is another.
        """
        if values.dtype not in KINDS:
            raise ValueError(f"values must be float32 or bfloat16, not {values.dtype}")
        counts = active.sum(-1).flatten()
        if int(counts.sum()) != len(values):
            raise ValueError(f"has {len(values)} values for {int(counts.sum())} places of {list(active.shape)}")
        self.shape, self.dtype = active.shape, values.dtype
        self.values = F.pad(values, (0, _BEHIND))
        self.starts = F.pad(counts.cumsum(0), (1, 0))  # of each row, and the end
        padded = F.pad(active, (0, -active.shape[-1] % _WORD)).view(-1, 8).to(torch.uint8)
        bits = (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)
        self.bits = bits.view(len(counts), -1)  # whole words

    @classmethod
    def of(cls, dense: torch.Tensor) -> "Bitmap":
        """Hold dense matrices [T, out, in]; what is 0 is left out."""
        active = dense != 0
        return cls(dense[active], active)

    @property
    def num_bytes(self) -> int:
        """Memory of all that is held."""
        return self.values.nbytes + self.starts.nbytes + self.bits.nbytes

    def dense(self, dtype: torch.dtype | None = None, path: str | None = None) -> torch.Tensor:
        """Return the matrices [T, out, in], in the values' type unless another is given."""
        trails, out, _ = self.shape
        rows = self._rows(0, trails * out, path or fastest_path())
        return rows.view(trails, out, -1).to(dtype or self.dtype)

    def multiply(self, x: torch.Tensor, path: str | None = None) -> torch.Tensor:
        """Return x [T, N, in] times the transposed matrices, [T, N, out], in the type of x.

        ``path`` is one of PATHS; None: the fastest there is. A gradient of x is of the dense matrices. ValueError where
        x is on another device.
        """
        if x.device != self.values.device:
            raise ValueError(f"x is on {x.device}, and sparse products are of CPUs: hold dense matrices there")
        if x.requires_grad and torch.is_grad_enabled():
            return x @ self.dense(x.dtype).mT
        trails, out, width = self.shape
        path, count, found = (
            path or fastest_path(),
            x.shape[1],
            x.new_empty(trails, x.shape[1], out, dtype=torch.float32),
        )
        if count > FEW or path == "torch":
            return self._multiply_many(x.float(), found, path).to(x.dtype)
        is_shared = trails == 1 or x.stride(0) == 0
        x32 = (x[:1] if is_shared else x).float().contiguous()
        library().bitmap_multiply(
            *(PATHS.index(path), *self._pointers(), trails, out, width, self.bits.shape[1] * 8 // _WORD),
            *(x32.data_ptr(), 0 if is_shared else x32.stride(0), count, found.data_ptr()),
            self._num_threads(trails * out),
        )
        return found.to(x.dtype)

    def _multiply_many(self, x: torch.Tensor, found: torch.Tensor, path: str) -> torch.Tensor:
        """Write a product into ``found``, with some rows of a matrix at a time."""
        trails, out, width = self.shape
        step = max(16, _ENTRIES_AT_ONCE // max(width, 1))
        for trail, start in ((trail, start) for trail in range(trails) for start in range(0, out, step)):
            end = min(start + step, out)
            rows = self._rows(trail * out + start, end - start, path)
            found[trail, :, start:end] = x[trail] @ rows.mT
        return found

    def _rows(self, first: int, count: int, path: str) -> torch.Tensor:
        """Return so many rows of all matrices, one below the other, dense fp32 [count, in]."""
        width = self.bits.shape[1] * 8
        dense = torch.zeros(count, width)
        if path == "torch":
            of_bits = self.bits[first : first + count, :, None] >> torch.arange(8, dtype=torch.uint8) & 1
            begin, end = self.starts[[first, first + count]].tolist()
            dense[of_bits.view(count, width).bool()] = self.values[begin:end].float()
        else:
            threads = self._num_threads(count)
            arguments = first, count, width // _WORD, dense.data_ptr(), threads
            library().bitmap_expand(PATHS.index(path), *self._pointers(), *arguments)
        return dense[:, : self.shape[2]]

    def _pointers(self) -> tuple[int, ...]:
        return KINDS[self.dtype], self.bits.data_ptr(), self.values.data_ptr(), self.starts.data_ptr()

    def _num_threads(self, rows: int) -> int:
        return 1 if rows * self.shape[2] < _SERIAL else torch.get_num_threads()


def faster(
    one: Callable[[], object], other: Callable[[], object], between: Callable[[], object] = lambda: None
) -> bool:
    """Say whether ``one`` takes less time than ``other``, by the best of a few turns, with ``between`` before each."""
    best = [float("inf")] * 2
    for _ in range(_TURNS + 1):  # in turns: whatever else the machine does meets both; the first warms up
        for place, work in enumerate((one, other)):
            between()
            start = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0] < best[1]


class Chooser:
    """Says whether bitmaps of a model are faster than dense matrices, by a measurement for each size and density.

    Between two products with one matrix a pass reads the rest of the model, which pushes it out of the caches. So does
    the measurement before each product: a matrix that stayed there would flatter the dense one.
    """

    def __init__(self, model_bytes: int, rows: int = 1, dtype: torch.dtype | None = None):
        """``model_bytes`` are those of all dense matrices, in ``dtype`` (None: a bitmap's own); ``rows`` those of x."""
        self._rows, self._dtype, self._known = rows, dtype, {}
        self._rest = torch.ones(max(1, min(model_bytes, _MOST_BETWEEN) // 4))

    @torch.no_grad()
    def __call__(self, matrix: Bitmap) -> bool:
        """Say whether ``matrix`` multiplies faster than what is dense."""
        if fastest_path() == "torch":
            return False
        key = matrix.shape, matrix.dtype, round(10 * len(matrix.values) / max(1, matrix.shape.numel()))
        if key not in self._known:
            dense = matrix.dense(self._dtype)
            x = torch.ones(1, self._rows, matrix.shape[-1], dtype=dense.dtype).expand(matrix.shape[0], -1, -1)
            self._known[key] = faster(
                lambda: matrix.multiply(x),
                lambda: [F.linear(rows, each) for rows, each in zip(x, dense, strict=True)],
                lambda: self._rest.add_(1),
            )
        return self._known[key]
