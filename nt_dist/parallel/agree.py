"""One outcome on all ranks: whatever fails on one of them fails on all, at once, with the same message."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from nt_dist.errors import ConfigError, NTDistError, RunError

if TYPE_CHECKING:
    from nt_dist.parallel.mesh import Mesh  # imports torch, which nothing here needs

T = TypeVar("T")


def agree(mesh: "Mesh", work: Callable[[], T], error: type[NTDistError] = RunError, only_main: bool = False) -> T:
    """Do ``work`` and make sure that all ranks succeed or none.

    Args:
        mesh: The ranks.
        work: What each rank does; with ``only_main`` the main rank alone, and its (picklable) result is everybody's.
        error: What an OSError is raised as.
        only_main: Whether only the main rank works.

    Raises:
        NTDistError: On every rank, the error of the first rank that failed; ``OSError`` becomes ``error``.
    """
    result = failure = None
    if mesh.is_main or not only_main:
        try:
            result = work()
        except NTDistError as problem:
            failure = problem
        except OSError as problem:
            failure = error(str(problem))
    if only_main:
        result, failure = mesh.broadcast_object((result, failure))
        failures = [failure]
    else:
        failures = mesh.gather_objects(failure)
    for rank, problem in enumerate(failures):
        if problem is not None:
            raise problem if mesh.world_size == 1 or only_main else _from_rank(problem, rank)
    return result


def _from_rank(problem: NTDistError, rank: int) -> NTDistError:
    if isinstance(problem, ConfigError):
        return ConfigError([f"{each} (rank {rank})" for each in problem.problems])
    return type(problem)(f"{problem} (rank {rank})")
