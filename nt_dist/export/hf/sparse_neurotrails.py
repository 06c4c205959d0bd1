"""Sparse files of an ensemble, and products with sparse matrices where they are faster on the machine at hand.

``sparse.safetensors`` has, for a matrix called NAME: ``NAME.values``, its entries that are not 0, in row-major order,
and where they are: ``NAME.bits``, a bit for every entry (the lowest of a byte first), or ``NAME.positions``, int32,
whichever is smaller. A matrix for which neither saves anything, and every vector, is there as it is, as ``NAME``.
"""

import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

FILE = "sparse.safetensors"
KERNELS = ("fastest", "dense", "csr")
_BITS = torch.arange(8, dtype=torch.uint8)
_TURNS = 5


def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a sparse file has for a weight, by what follows its name."""
    flat = weight.detach().flatten()
    active = flat != 0
    values = flat[active]
    num_bytes = {"bits": -(-flat.numel() // 8), "positions": 4 * values.numel()}
    where = min(num_bytes, key=num_bytes.get)
    if weight.dim() < 2 or values.nbytes + num_bytes[where] >= flat.nbytes:
        return {"": weight.detach().contiguous()}
    if where == "positions":
        return {".values": values, ".positions": active.nonzero()[:, 0].int()}
    padded = F.pad(active.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    return {".values": values, ".bits": (padded << _BITS).sum(1, dtype=torch.uint8)}


def unpack(parts: dict[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Invert :func:`pack` for a weight of ``shape``; KeyError or ValueError if the parts are not those of one."""
    if "" in parts:
        if parts[""].shape != shape:
            raise ValueError(f"has shape {list(parts[''].shape)}, must have {list(shape)}")
        return parts[""]
    size, values = shape.numel(), parts[".values"]
    if ".positions" in parts:
        positions = parts[".positions"].long()
    else:
        positions = (parts[".bits"][:, None] >> _BITS & 1).flatten().nonzero()[:, 0]
    if len(positions) != len(values) or (len(positions) and not 0 <= positions.min() <= positions.max() < size):
        raise ValueError(f"has {len(values)} values for {len(positions)} places of a matrix of {list(shape)}")
    return values.new_zeros(size).index_copy_(0, positions, values).view(shape)


def save_sparse(model: nn.Module, folder: Path) -> None:
    """Write the sparse file of a model with dense weights."""
    packed = {f"{name}{part}": each for name, weight in model.named_parameters() for part, each in pack(weight).items()}
    save_file(packed, Path(folder) / FILE, metadata={"format": "pt"})


class SparseLinear(nn.Module):
    """x · Wᵀ with W, given dense [out, in], in compressed rows: a step of one token reads less than the dense one."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that compressed rows are in beta state
            rows = weight.to_sparse_csr()
            parts = (rows.crow_indices().int(), rows.col_indices().int(), rows.values())  # int32: half of what is read
            self.register_buffer("matrix", torch.sparse_csr_tensor(*parts, rows.shape), persistent=False)

    @property
    def num_bytes(self) -> int:
        """Memory of values and indices."""
        matrix = self.matrix
        return sum(each.nbytes for each in (matrix.crow_indices(), matrix.col_indices(), matrix.values()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out] for x [..., in]."""
        rows = x.reshape(-1, x.shape[-1])
        product = torch.mv(self.matrix, rows[0])[None] if len(rows) == 1 else (self.matrix @ rows.T).T
        return product.unflatten(0, x.shape[:-1])


def faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Say whether ``one`` takes less time than ``other``, by the best of a few turns each."""
    best = [float("inf")] * 2
    for _ in range(_TURNS + 1):  # in turns: whatever else the machine does meets both; the first warms up
        for place, work in enumerate((one, other)):
            start = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0] < best[1]


def _rows_are_faster(weight: torch.Tensor, tokens: int, known: dict[tuple, bool]) -> bool:
    """Measure a matrix in compressed rows against the dense one, once for each size and density."""
    if weight.dtype != torch.float32:  # on CPUs there are no sparse products of bf16
        return False
    key = (weight.shape, round(10 * float(weight.count_nonzero()) / weight.numel()))
    if key not in known:
        x, sparse = torch.randn(tokens, weight.shape[1]), SparseLinear(weight)
        known[key] = faster(lambda: sparse(x), lambda: F.linear(x, weight))
    return known[key]


@torch.no_grad()
def load_sparse(model: nn.Module, folder: Path, kernel: str = "fastest", tokens: int = 1) -> None:
    """Fill a model, which may be on the meta device, from a sparse file; ValueError if the file is not of this model.

    ``kernel`` is "dense"; "csr", compressed rows, for which linear layers are replaced; or "fastest", whichever a short
    measurement finds for each matrix in passes of so many ``tokens``: 1 for writing text, more for reading it.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel = {kernel!r} must be one of {', '.join(KERNELS)}")
    names, stored = dict(model.named_parameters()), defaultdict(dict)
    for key, tensor in load_file(Path(folder) / FILE).items():
        name = re.sub(r"\.(values|bits|positions)$", "", key)
        stored[name][key[len(name) :]] = tensor
    if differing := sorted(stored.keys() ^ names.keys()):
        raise ValueError(f"{FILE} is of another model: {', '.join(differing[:3])} is in one of them only")
    known = {}
    for name, parameter in names.items():
        try:
            weight = unpack(stored.pop(name), parameter.shape)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{FILE}: {name}: {error}") from None
        path = name.rpartition(".")[0]
        is_sparse = isinstance(model.get_submodule(path), nn.Linear) and weight.count_nonzero() < weight.numel()
        if is_sparse and (kernel == "csr" or (kernel == "fastest" and _rows_are_faster(weight, tokens, known))):
            model.set_submodule(path, SparseLinear(weight))
        else:
            model.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
    if any(isinstance(each, SparseLinear) for each in model.modules()):
        model.save_pretrained = _refuse_to_save


def _refuse_to_save(*arguments: object, **settings: object) -> None:
    """Stand for save_pretrained in a model whose state lacks its sparse matrices."""
    raise ValueError("matrices in compressed rows are not saved: load with kernel = 'dense', or copy the folder")
