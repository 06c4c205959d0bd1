"""Sparse files of an ensemble, and a model that multiplies with its matrices as such a file has them.

``sparse.safetensors`` has, for a matrix called NAME: ``NAME.values``, its entries that are not 0, in row-major order,
and where they are: ``NAME.bits``, a bit for every entry (the lowest of a byte first), or ``NAME.positions``, int32,
whichever is smaller. A matrix for which neither saves anything, and every vector, is there as it is, as ``NAME``.
"""

import logging
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

try:  # C++ that is compiled on this machine comes from an installed package only, never with a model's files
    from nt_dist.kernels.bitmap import FEW, KINDS, Bitmap, Chooser
except ImportError:
    FEW = KINDS = Bitmap = Chooser = None

FILE = "sparse.safetensors"
KERNELS = ("fastest", "dense", "sparse")
_BITS = torch.arange(8, dtype=torch.uint8)
_logger = logging.getLogger(__name__)


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
    positions = parts[".positions"].long() if ".positions" in parts else _active(parts[".bits"]).nonzero()[:, 0]
    if len(positions) != len(values) or (len(positions) and not 0 <= positions.min() <= positions.max() < size):
        raise ValueError(f"has {len(values)} values for {len(positions)} places of a matrix of {list(shape)}")
    return values.new_zeros(size).index_copy_(0, positions, values).view(shape)


def _active(bits: torch.Tensor) -> torch.Tensor:
    """Return what bits say, a bool for each."""
    return (bits[:, None] >> _BITS & 1).flatten().bool()


def save_sparse(model: nn.Module, folder: Path) -> None:
    """Write the sparse file of a model with dense weights."""
    packed = {f"{name}{part}": each for name, weight in model.named_parameters() for part, each in pack(weight).items()}
    save_file(packed, Path(folder) / FILE, metadata={"format": "pt"})


class SparseLinear(nn.Module):
    """x · Wᵀ with W [out, in] as nt_dist holds it, values and a bit for every entry, which are less to read."""

    def __init__(self, matrix: "Bitmap", weight: nn.Parameter | None = None):
        """Where the dense ``weight`` is kept as well, passes of many tokens take that."""
        super().__init__()
        self.matrix, self.weight = matrix, weight

    @property
    def num_bytes(self) -> int:
        """Memory of values and bits."""
        return self.matrix.num_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out] for x [..., in], in the type of x."""
        if self.weight is not None and x[..., 0].numel() > FEW:
            return F.linear(x, self.weight)
        return self.matrix.multiply(x.reshape(1, -1, x.shape[-1]))[0].unflatten(0, x.shape[:-1])

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Give the state of the plain layer that this is, so that whatever saves a model saves all of it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight is None:
            destination[f"{prefix}weight"] = self.matrix.dense()[0].contiguous()

    def _load_from_state_dict(self, state_dict, prefix, *settings):
        """Take such a state; the matrix follows it, whether the dense one is kept or not."""
        is_kept = self.weight is not None
        if not is_kept:
            self.weight = nn.Parameter(self.matrix.dense()[0], requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *settings)
        self.matrix = Bitmap.of(self.weight.detach()[None])
        if not is_kept:
            self.weight = None


def sparse_linear(parts: dict[str, torch.Tensor], shape: torch.Size) -> SparseLinear:
    """Make one of what :func:`pack` gave for a weight of ``shape``; KeyError or ValueError as :func:`unpack`."""
    if ".bits" not in parts:
        return SparseLinear(Bitmap.of(unpack(parts, shape)[None]))
    active = _active(parts[".bits"])[: shape.numel()]
    if len(active) != shape.numel():
        raise ValueError(f"has bits for {len(active)} places of a matrix of {list(shape)}")
    return SparseLinear(Bitmap(parts[".values"], active.view(1, *shape)))


@torch.no_grad()
def load_sparse(model: nn.Module, folder: Path, kernel: str = "fastest", tokens: int = 1) -> None:
    """Fill a model, which may be on the meta device, from a sparse file; ValueError if the file is not of this model.

    ``kernel`` is "dense"; "sparse", for which linear layers are replaced; or "fastest", whichever a short measurement
    finds for each matrix in passes of so many ``tokens``: 1 for writing text, more for reading it. Sparse products are
    those of the package nt_dist; where it is not installed "fastest" is dense, which is said once.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel = {kernel!r} must be one of {', '.join(KERNELS)}")
    if kernel != "dense" and Bitmap is None:
        if kernel == "sparse":
            raise ValueError(
                "kernel = 'sparse' must be 'dense' or 'fastest' where the package nt_dist is not installed"
            )
        _say_once("sparse matrices stay dense: their products are those of the package nt_dist, which is not installed")
        kernel = "dense"
    names, stored = dict(model.named_parameters()), defaultdict(dict)
    for key, tensor in load_file(Path(folder) / FILE).items():
        name = re.sub(r"\.(values|bits|positions)$", "", key)
        stored[name][key[len(name) :]] = tensor
    if differing := sorted(stored.keys() ^ names.keys()):
        raise ValueError(f"{FILE} is of another model: {', '.join(differing[:3])} is in one of them only")
    linear = {name for name in names if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)}
    wins = Chooser(4 * sum(names[name].numel() for name in linear), tokens) if kernel == "fastest" else None
    for name, parameter in names.items():
        path, parts = name.rpartition(".")[0], stored.pop(name)
        try:
            module = sparse_linear(parts, parameter.shape) if name in linear and kernel != "dense" else None
            if module is None or (kernel == "fastest" and not wins(module.matrix)):
                weight = nn.Parameter(unpack(parts, parameter.shape), requires_grad=False)
                model.get_submodule(path).weight = weight
            else:
                model.set_submodule(path, module)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{FILE}: {name}: {error}") from None


def check_dense(model: nn.Module) -> None:
    """Raise a ValueError where a model holds matrices sparse only, whose size cannot be changed."""
    if any(isinstance(each, SparseLinear) and each.weight is None for each in model.modules()):
        raise ValueError("matrices that are held sparse cannot be resized: load with kernel = 'dense'")


def hold_sparse(model: nn.Module, tokens: int = 1) -> int:
    """Let a dense model on the CPU write faster: return how many linear layers hold their matrix sparse as well.

    That is where it is faster in passes of so many ``tokens``; passes of many take the dense one, as before.
    """
    linear = {path: each for path, each in model.named_modules() if type(each) is nn.Linear}
    if tokens > FEW or any(
        each.weight.device.type != "cpu" or each.weight.dtype not in KINDS for each in linear.values()
    ):
        return 0
    wins, count = Chooser(sum(each.weight.nbytes for each in linear.values()), tokens), 0
    for path, each in linear.items():
        matrix = Bitmap.of(each.weight.detach()[None])
        if wins(matrix):
            model.set_submodule(path, SparseLinear(matrix, each.weight))
            count += 1
    return count


@cache
def _say_once(text: str) -> None:
    _logger.warning(text)
