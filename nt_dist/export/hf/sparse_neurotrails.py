"""Sparse files of an ensemble, and products with sparse matrices where they are faster on the machine at hand.

``sparse.safetensors`` has, for a matrix called NAME: ``NAME.values``, its entries that are not 0, in row-major order,
and where they are: ``NAME.bits``, a bit for every entry (the lowest of a byte first), or ``NAME.positions``, int32,
whichever is smaller. A matrix for which neither saves anything, and every vector, is there as it is, as ``NAME``.
"""

import time
import warnings
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
    """Invert :func:`pack` for a weight of ``shape``.

    Raises:
        ValueError: The parts are not those of such a weight.
    """
    if "" in parts:
        whole = parts[""]
        if whole.shape != shape:
            raise ValueError(f"has shape {list(whole.shape)}, must have {list(shape)}")
        return whole
    size, values = shape.numel(), parts[".values"]
    if ".positions" in parts:
        positions = parts[".positions"].long()
    else:
        bits = parts[".bits"][:, None] >> _BITS & 1
        positions = bits.flatten().nonzero()[:, 0]
    if len(positions) != len(values) or (len(positions) and not 0 <= positions.min() <= positions.max() < size):
        raise ValueError(f"has {len(values)} values for {len(positions)} places of a matrix of {list(shape)}")
    return values.new_zeros(size).index_copy_(0, positions, values).view(shape)


def save_sparse(model: nn.Module, folder: Path) -> None:
    """Write the sparse file of a model with dense weights."""
    packed = {f"{name}{part}": each for name, weight in model.named_parameters() for part, each in pack(weight).items()}
    save_file(packed, Path(folder) / FILE, metadata={"format": "pt"})


class SparseLinear(nn.Module):
    """x · Wᵀ with W in compressed rows: what a step of one token reads is smaller than the dense matrix.

    Args:
        weight: W, dense [out, in].
    """

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


class _Chooser:
    """Measures, once for each size and density, whether compressed rows are faster than a dense matrix."""

    def __init__(self, kernel: str, tokens: int):
        if kernel not in KERNELS:
            raise ValueError(f"kernel = {kernel!r} must be one of {', '.join(KERNELS)}")
        self.kernel, self.tokens = kernel, tokens
        self.known: dict[tuple, bool] = {}

    def is_sparse(self, weight: torch.Tensor) -> bool:
        """Say whether a matrix is to be held in compressed rows."""
        if self.kernel != "fastest":
            return self.kernel == "csr"
        if weight.dtype != torch.float32:  # on CPUs there are no sparse products of bf16
            return False
        key = (weight.shape, round(10 * float(weight.count_nonzero()) / weight.numel()))
        if key not in self.known:
            x, sparse = torch.randn(self.tokens, weight.shape[1]), SparseLinear(weight)
            self.known[key] = faster(lambda: sparse(x), lambda: F.linear(x, weight))
        return self.known[key]


def faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Say whether ``one`` takes less time than ``other``, by the best of a few turns each."""
    best = [float("inf")] * 2
    for _ in range(_TURNS + 1):  # in turns: whatever else the machine does meets both; the first warms up
        for place, work in enumerate((one, other)):
            start = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0] < best[1]


@torch.no_grad()
def load_sparse(model: nn.Module, folder: Path, kernel: str = "fastest", tokens: int = 1) -> None:
    """Fill a model, which may be on the meta device, from a sparse file.

    Args:
        model: Of the file's sizes; linear layers whose matrices stay sparse are replaced.
        folder: Where the file is.
        kernel: "dense"; "csr", compressed rows; or "fastest", whichever a short measurement finds for each matrix.
        tokens: In the passes that matter for "fastest": 1 for writing text, more for reading it.

    Raises:
        ValueError: The file is not of this model.
    """
    stored: dict[str, dict[str, torch.Tensor]] = {}
    names = dict(model.named_parameters())
    for key, tensor in load_file(Path(folder) / FILE).items():
        name = next((key[: -len(part)] for part in (".values", ".bits", ".positions") if key.endswith(part)), key)
        stored.setdefault(name, {})[key[len(name) :]] = tensor
    if stored.keys() != names.keys():
        differing = sorted(stored.keys() ^ names.keys())
        raise ValueError(f"{FILE} is of another model: {', '.join(differing[:3])} is in one of them only")
    choose = _Chooser(kernel, tokens)
    for name, parameter in names.items():
        try:
            weight = unpack(stored.pop(name), parameter.shape)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{FILE}: {name}: {error}") from None
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear) and weight.count_nonzero() < weight.numel() and choose.is_sparse(weight):
            model.set_submodule(path, SparseLinear(weight))
        else:
            module.weight = nn.Parameter(weight, requires_grad=False)
