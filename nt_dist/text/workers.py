"""Who prepares data: one process alone, or the ranks of an MPI job that share a file system."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nt_dist.errors import NTDistError, RunError

T = TypeVar("T")


class Crew:
    """One process, working alone."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order, on every rank."""
        return [value]

    def agree(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; where it fails on any, all raise.

        Raises:
            NTDistError: The error of the first rank that failed.
        """
        error, result = None, None
        try:
            result = work()
        except NTDistError as caught:
            error = caught
        failed = next((caught for caught in self.gather(error) if caught is not None), None)
        if failed is not None:
            raise failed
        return result

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 and give its result to all; where it fails all raise its error."""
        return self.gather(self.agree(lambda: work() if self.rank == 0 else None))[0]


class MpiCrew(Crew):
    """The ranks of an MPI job.

    Args:
        communicator: mpi4py's COMM_WORLD.
    """

    def __init__(self, communicator: Any):
        self._communicator = communicator
        self.rank = communicator.Get_rank()
        self.size = communicator.Get_size()

    def gather(self, value: Any) -> list[Any]:
        return self._communicator.allgather(value)


@contextmanager
def find_crew() -> Iterator[Crew]:
    """The crew this process was started in: all ranks under mpirun or srun, else itself alone.

    MPI is left in order on the way out, for the process may end without its exit handlers; a rank that fails alone
    takes the others down.

    Raises:
        RunError: If it was started with several ranks and mpi4py is missing.
    """
    if max(int(os.environ.get(name, "1")) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")) == 1:
        yield Crew()
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RunError("preparing data with several MPI ranks needs the package mpi4py (extra [mpi])") from error
    try:
        yield MpiCrew(MPI.COMM_WORLD)
    except NTDistError:  # agreed upon: all ranks raise it
        MPI.Finalize()
        raise
    except BaseException:
        import traceback

        traceback.print_exc()
        MPI.COMM_WORLD.Abort(1)
    MPI.Finalize()
