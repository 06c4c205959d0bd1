"""One outcome on all ranks: what fails on one of them fails on all, and the first error of a job stands out."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from nt_dist.errors import ConfigError, NTDistError, RunError

if TYPE_CHECKING:
    from nt_dist.parallel.mesh import Mesh  # imports torch, which nothing here needs

T = TypeVar("T")
# gloo's words for a connection that ended, NCCL's for a process that did
LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|remote process exited")


def agree(
    mesh: "Mesh", work: Callable[[], T], error: Callable[[str], NTDistError] = RunError, only_main: bool = False
) -> T:
    """Do ``work`` and make sure that all ranks succeed or none; return its result.

    With ``only_main`` the main rank alone does it, and its (picklable) result is everybody's.

    Raises:
        NTDistError: On every rank, the error of the first rank that failed, which the main rank says, and which rank
            that was unless all failed alike; ``OSError`` becomes ``error``.
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
    elif mesh.any(failure is not None)[0]:
        failures = mesh.gather_objects(failure)
    else:  # as always but once: nobody has anything to tell thousands of others
        failures = []
    is_alike = len({str(problem) for problem in failures}) == 1
    for rank, problem in enumerate(failures):
        if problem is None:
            continue
        if not is_alike:
            if isinstance(problem, ConfigError):
                problem = ConfigError([f"{each} (rank {rank})" for each in problem.problems])
            else:
                problem = type(problem)(f"{problem} (rank {rank})")
        problem.is_said = not mesh.is_main
        raise problem
    return result


@contextlib.contextmanager
def naming_lost_ranks(rank: int) -> Iterator[None]:
    """Turn what a collective raises when a peer has gone into a RunError that says so; all else passes.

    A rank that fails writes its own message before its connections close, and only then do the others fail, in whatever
    collective they are; they leave with a non-zero code, which tells the launchers on their hosts.
    """
    try:
        yield
    except RuntimeError as error:
        found = LOST.search(str(error))
        if not found:
            raise
        line = next(line for line in str(error).splitlines() if LOST.search(line))
        address = re.search(r"\[([\w.:]+)\]:(\d+)", line)  # where gloo gives it
        words = f"{found[0]}: {address[1]}" if address else found[0]
        raise RunError(
            f"rank {rank} on {socket.gethostname()} lost another rank ({words}); what that one said is the first error "
            "of this job, and if it said nothing it was killed"
        ) from error
