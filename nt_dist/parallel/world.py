"""What all ranks tell each other in a flag, a digest or Python's objects, before there is a mesh and after."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


class World:
    """All ranks, and what they tell each other in Python's objects; ``device`` is where this one computes.

    Nothing here that is done without a fault costs more than a reduction, whatever the number of ranks.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._flags = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all: writes logs and shared files."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any rank has it set; the same on every rank."""
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.bool().tolist())

    def is_same(self, digest: bytes) -> bool:
        """Say whether all ranks have the same ``digest``, of a multiple of eight bytes."""
        own = torch.frombuffer(bytearray(digest), dtype=torch.int64).to(self.device)
        both = torch.stack([own, ~own])  # the highest and, of the second, the lowest
        if self.world_size > 1:
            dist.all_reduce(both, dist.ReduceOp.MAX)
        return bool((both[0] == ~both[1]).all())

    def gather_objects(self, thing: Any) -> list[Any]:
        """Return every rank's ``thing``, in rank order: as many as there are ranks, on each of them."""
        things: list[Any] = [thing] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(things, thing)
        return things

    def broadcast_object(self, thing: Any, source: int = 0) -> Any:
        """Return rank ``source``'s ``thing``."""
        things = [thing]
        if self.world_size > 1:
            dist.broadcast_object_list(things, src=source)
        return things[0]

    @property
    def store(self) -> dist.Store:
        """Where ranks leave word for each other without waiting, from any thread; rank 0's process keeps it, or a
        launcher's agent."""
        return dist.PrefixStore("nt_dist", dist.distributed_c10d._get_default_store())

    def new_flag(self) -> tuple[Callable[[], bool], Callable[[], None]]:
        """Make a flag that all ranks share: what asks whether it is set, without waiting, and what sets it. Every rank
        makes its flags in the same order."""
        self._flags += 1
        name, store = f"flag {self._flags}", self.store
        return lambda: store.check([name]), lambda: store.set(name, "set")

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()
