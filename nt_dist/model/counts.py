"""Kernels and bytes of a computation, counted on tensors without data: what a GPU has to launch and to move.

A kernel is one call of an operation of torch that makes or changes numbers; views and memory that is only taken are
none. Its bytes are those of every tensor it reads and writes, each once and an expanded one as it is stored: as if no
cache kept anything from one kernel to the next. Of what is read or written by places only those count.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nt_dist.config.settings import Config
from nt_dist.model.losses import objective
from nt_dist.model.trails import build_model, weights_of

_WITHOUT_KERNEL = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
}
_BY_PLACES = {"gather", "index_select", "embedding", "scatter_", "scatter_add_", "index_copy_", "index_add_"}
_OVERWRITTEN = {"copy_", "fill_", "zero_", "index_copy_"}


@dataclass
class Counts:
    """How often each operation was called, and what it moved, under its name in torch."""

    calls: Counter = field(default_factory=Counter)
    moved: Counter = field(default_factory=Counter)

    @property
    def kernels(self) -> int:
        """How many were launched."""
        return self.calls.total()

    @property
    def bytes(self) -> int:
        """How many were read and written."""
        return self.moved.total()

    def add(self, name: str, moved: int) -> None:
        """Count one kernel."""
        self.calls[name] += 1
        self.moved[name] += moved


class Counting(TorchDispatchMode):
    """Counts while it is entered, into ``counts``."""

    def __init__(self):
        super().__init__()
        self.counts = Counts()
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        self._stack.enter_context(_fused(self.counts))
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self._stack.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _WITHOUT_KERNEL:
            self.counts.add(name, _moved(name, (args, kwargs), tree_leaves(result)))
        return result


@contextlib.contextmanager
def _fused(counts: Counts) -> Iterator[None]:
    """Have attention and norms be the one kernel that a GPU has for each; without data torch takes them apart.

    By their names in torch, since modes for functions do not reach what is computed again in backward.
    """

    def attention(query, key, value, mask=None, *, is_causal, enable_gqa=False):
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]

    def norm(x, shape, weight, eps):
        return _Norm.apply(x, weight, counts)

    own = F.scaled_dot_product_attention, F.rms_norm
    F.scaled_dot_product_attention, F.rms_norm = attention, norm
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = own


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, counts):
        ctx.save_for_backward(x, scale)
        ctx.counts = counts
        counts.add("rms_norm", 2 * x.nbytes)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        ctx.counts.add("rms_norm_backward", 3 * x.nbytes)
        ctx.counts.add("rms_norm_backward", 2 * x.nbytes)  # of the scale
        return torch.empty_like(x), torch.empty_like(scale), None


def _moved(name: str, inputs: tuple, results: list) -> int:
    tensors = [each for each in tree_leaves(inputs) if isinstance(each, torch.Tensor)]
    written = [each for each in results if isinstance(each, torch.Tensor)]
    if name in _BY_PLACES:
        table, *others = tensors
        changes = name.endswith("_")
        places = max(others, key=torch.Tensor.numel).numel() if changes else written[0].numel()
        times = 2 if changes and name not in _OVERWRITTEN else 1  # what is added to is read as well
        own = 0 if changes else written[0].nbytes
        return places * table.element_size() * times + sum(map(_stored, others)) + own
    read = tensors[1:] if name in _OVERWRITTEN else tensors
    return sum(map(_stored, read)) + sum(map(_stored, written))


def _stored(tensor: torch.Tensor) -> int:
    """Bytes of its entries, those that are the same memory once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return count


def count_micro_batch(config: Config) -> Counts:
    """Count forward and backward of one micro-batch of the whole model on one GPU, in the precision of ``config``; not
    of a step's first, where dense copies are kept."""
    model = build_model(config, device="meta").to(torch.bfloat16 if config.train.precision == "bf16" else torch.float32)
    family, size = config.family, config.train.micro_batch_size
    dtype = torch.uint8 if family.reads_bytes else torch.long
    samples = torch.empty(size, *family.input_shape(config), dtype=dtype, device="meta")
    targets = torch.empty(size, family.positions(config), dtype=torch.long, device="meta")
    inputs = samples, targets, torch.empty(targets.shape, device="meta")
    for weight in weights_of(model).values():
        weight.keep_built(config.train.keep_dense)
    model(*inputs)  # makes what is kept
    with Counting() as counting:
        objective(model(*inputs), config.joint_weight(1)).backward()
    return counting.counts
