"""Counts what goes through torch.distributed's collectives, by the mesh's axis and the operation.

A call's *payload* is the bytes of the whole tensor that the collective makes equal, gathers or scatters: the tensor of
an all-reduce or a broadcast, the whole output of an all-gather, the whole input of a reduce-scatter, what is sent. What
then travels depends on the algorithm; planning's ``sent_bytes`` has the ring's. Python objects (a few hundred bytes,
pickled) are no tensors and are left out unless they are asked for, and so are barriers.
"""

import contextlib
import functools
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from nt_dist.parallel.mesh import AXES, Mesh

OTHER = "other"
"""The name for groups that are no axis of the mesh."""


class Traffic:
    """Counted payloads.

    Attributes:
        payload: Bytes by (axis, operation): all_reduce, all_gather, reduce_scatter, broadcast, reduce or send.
        calls: Calls by the same.
    """

    def __init__(self):
        self.payload: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._mesh: Mesh | None = None
        self._counts_all = False  # whatever the group
        self.largest: float = math.inf  # payload that is counted, in bytes
        self._inside = False  # a collective that is made of others

    def start(self, mesh: Mesh) -> None:
        """Forget what was counted; count from now on, over ``mesh``."""
        self._mesh = mesh
        self.payload.clear()
        self.calls.clear()

    def start_all(self) -> None:
        """Count from now on, by operation alone: before there is a mesh."""
        self._counts_all = True

    def stop(self) -> dict[tuple[str, str], int]:
        """Count no longer; return the payload."""
        self._mesh = None
        return dict(self.payload)

    @contextlib.contextmanager
    def call(self, operation: str | None, num_bytes: int, group: dist.ProcessGroup | None) -> Iterator[None]:
        """Count one call, unless it is part of another's; ``operation`` None: neither it nor what it is made of."""
        outermost, self._inside = not self._inside, True
        if outermost and operation and num_bytes <= self.largest and (self._mesh is not None or self._counts_all):
            key = (OTHER if self._counts_all else _axis_of(self._mesh, group), operation)
            self.payload[key] += num_bytes
            self.calls[key] += 1
        try:
            yield
        finally:
            self._inside = not outermost


def _axis_of(mesh: Mesh, group: dist.ProcessGroup | None) -> str:
    """Return the axis whose ranks ``group`` has: libraries make groups of their own of the same ranks."""
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    for name in AXES:
        axis = getattr(mesh, name)
        if axis.degree > 1 and dist.get_process_group_ranks(axis.group) == ranks:
            return name
    return OTHER


def _bytes(thing: Any) -> int:
    return thing.nbytes if isinstance(thing, torch.Tensor) else sum(_bytes(each) for each in thing)


# Operation, and the number and name of the argument that is its payload.
_COUNTED = {
    "all_reduce": ("all_reduce", 0, "tensor"),
    "all_gather": ("all_gather", 0, "tensor_list"),
    "all_gather_into_tensor": ("all_gather", 0, "output_tensor"),
    "_all_gather_base": ("all_gather", 0, "output_tensor"),
    "reduce_scatter": ("reduce_scatter", 1, "input_list"),
    "reduce_scatter_tensor": ("reduce_scatter", 1, "input"),
    "_reduce_scatter_base": ("reduce_scatter", 1, "input"),
    "all_reduce_coalesced": ("all_reduce", 0, "tensors"),
    "broadcast": ("broadcast", 0, "tensor"),
    "reduce": ("reduce", 0, "tensor"),
    "send": ("send", 0, "tensor"),
    "isend": ("send", 0, "tensor"),
}


_OBJECTS = ("all_gather_object", "broadcast_object_list", "barrier")


@contextlib.contextmanager
def counted_traffic(objects: bool = False) -> Iterator[Traffic]:
    """Wrap torch.distributed's collectives within; counts from :meth:`Traffic.start` on, with ``objects`` also the
    tensors that Python objects travel in.

    To be entered before DeepSpeed joins the ranks: it keeps references to some of the functions.
    """
    traffic = Traffic()
    modules = (dist, distributed_c10d)  # the first has the second's functions; both are called
    names = (*_COUNTED, *(() if objects else _OBJECTS))
    originals = {name: getattr(dist, name) for name in names if hasattr(dist, name)}
    try:
        for name, original in originals.items():
            for module in modules:
                setattr(module, name, _wrapped(original, traffic, *_COUNTED.get(name, (None, 0, ""))))
        yield traffic
    finally:
        for name, original in originals.items():
            for module in modules:
                setattr(module, name, original)


def _wrapped(original: Callable, traffic: Traffic, operation: str | None, number: int, name: str) -> Callable:
    @functools.wraps(original)
    def call(*args, **kwargs):
        num_bytes = _bytes(kwargs[name] if name in kwargs else args[number]) if operation else 0
        group = inspect.signature(original).bind(*args, **kwargs).arguments.get("group")
        with traffic.call(operation, num_bytes, group):
            return original(*args, **kwargs)

    return call
