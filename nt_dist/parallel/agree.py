"""One outcome on all ranks: whatever fails on one of them fails on all, at once, with the same message."""

import time
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import PrefixStore, distributed_c10d

from nt_dist.errors import ConfigError, NTDistError, RunError
from nt_dist.parallel.mesh import Mesh
from nt_dist.watch.heartbeat import Heartbeat

T = TypeVar("T")
LOOK_SECONDS = 0.5


def agree(mesh: Mesh, work: Callable[[], T], error: type[NTDistError] = RunError, only_main: bool = False) -> T:
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


def agree_patiently(mesh: Mesh, work: Callable[[], T], heartbeat: Heartbeat) -> T:
    """Do ``work`` on the main rank alone, as :func:`agree` does, where it may take longer than a collective may wait.

    The other ranks look into the job's store for its end instead, so that signals reach them meanwhile.
    """
    if mesh.world_size == 1:
        return work()
    store = PrefixStore("nt_dist.patience", distributed_c10d._get_default_store())
    mesh.patience += 1
    name = f"work {mesh.patience}"

    def do() -> T:
        try:
            return work()
        finally:
            store.set(name, "done")

    while not mesh.is_main and not store.check([name]):
        heartbeat.beat()
        time.sleep(LOOK_SECONDS)
    return agree(mesh, do, only_main=True)


def _from_rank(problem: NTDistError, rank: int) -> NTDistError:
    if isinstance(problem, ConfigError):
        return ConfigError([f"{each} (rank {rank})" for each in problem.problems])
    return type(problem)(f"{problem} (rank {rank})")
