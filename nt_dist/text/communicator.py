"""Who prepares data: one process alone, or the ranks of an MPI job that share a file system."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nt_dist.errors import NTDistError, RunError


class Communicator:
    """The processes that share the preparing: those of ``world``, mpi4py's COMM_WORLD, or this one alone."""

    def __init__(self, world: Any = None):
        self._world = world
        self.rank, self.size = (0, 1) if world is None else (world.Get_rank(), world.Get_size())

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order, on every rank."""
        return [value] if self._world is None else self._world.allgather(value)

    def agree(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` on every rank; where it fails on any, all raise the NTDistError of the first that failed."""
        result = error = None
        try:
            result = work()
        except NTDistError as caught:
            error = caught
        for failed in filter(None, self.gather(error)):
            raise failed
        return result

    def on_first(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` on rank 0 and give its result to all; where it fails all raise its error."""
        return self.gather(self.agree(lambda: work() if self.rank == 0 else None))[0]


@contextmanager
def open_communicator() -> Iterator[Communicator]:
    """What this process was started in: all ranks under mpirun or srun, else itself alone.

    MPI is left in order on the way out, for the process may end without its exit handlers; a rank that fails alone
    takes the others down. RunError if there are several ranks and mpi4py is missing.
    """
    sizes = {name: os.environ[name] for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE") if os.environ.get(name)}
    for name, size in sizes.items():
        if not size.isdecimal():
            raise RunError(f"{name} = {size!r} must be a whole number of at least 1; mpirun sets it")
    if max(map(int, sizes.values()), default=1) <= 1:
        yield Communicator()
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RunError("preparing data with several MPI ranks needs the package mpi4py (extra [mpi])") from error
    communicator = Communicator(MPI.COMM_WORLD)
    try:
        yield communicator
    except NTDistError as error:  # agreed upon: all ranks raise it
        error.is_said = communicator.rank > 0
        MPI.Finalize()
        raise
    except BaseException:
        traceback.print_exc()
        MPI.COMM_WORLD.Abort(1)
    MPI.Finalize()
