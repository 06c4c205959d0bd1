"""Ranks come together: a store at rank 0 that all reach, waited for where a signal or Ctrl-C can end it at once.

torch's own rendezvous waits in C++, in silence and for ten minutes, also where nobody else will come: in a shell under
srun, or where a launcher's variables are left over.
"""

import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from nt_dist.errors import RunError
from nt_dist.messages import LOGGER
from nt_dist.parallel import launcher

SILENT_SECONDS = 5.0  # of waiting, before it is said what for
_LOOK_EVERY = 0.1  # seconds; of thousands of ranks each looks more rarely, for the store to have time for all:
_LOOKS = 5000  # of all ranks in a second, at most
_NAMED = 8  # ranks that a message names


def meet(timeout: timedelta, said_by: str = "") -> dist.Store:
    """Return a store that all ranks share, once all are there; RunError after ``timeout``, or where rank 0 cannot
    listen. ``said_by`` are the variables that say so, if not those that stand there now."""
    rank, world_size, _ = launcher.process()
    address, port = launcher.meeting_point()
    said = f"rank {rank} of {world_size} waits at {address}:{port} for "
    wait = _Waiting(
        said, said_by or launcher.said_by(), time.monotonic() + timeout.seconds, max(_LOOK_EVERY, world_size / _LOOKS)
    )
    if rank == 0:
        store = _listen(address, port, world_size, timeout)
    else:
        wait.until(lambda: _reaches(address, port), lambda: [0])
        store = dist.TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    if store.add(f"rank {rank}", 1) > 1:
        rule = f"rank {rank} of a job is there already: another job's? Each job needs a port of its own, MASTER_PORT"
        raise RunError(f"MASTER_ADDR:MASTER_PORT = {address}:{port}: {rule}")
    store.append("who", f"{rank} ")
    store.add("here", 1)

    def missing() -> list[int]:  # one request: all ranks may ask at the same time
        here = set(map(int, store.get("who").split()))
        return [each for each in range(world_size) if each not in here]

    wait.until(lambda: store.add("here", 0) >= world_size, missing)
    return store


class _Waiting:
    """Waits as a Python loop, and says once for whom, and which variables say so; ``deadline`` as ``time.monotonic``
    counts, ``every`` is how many seconds lie between two looks."""

    def __init__(self, what: str, said_by: str, deadline: float, every: float):
        self._what, self._said_by, self._deadline, self._every = what, said_by, deadline, every
        self._say_at: float = time.monotonic() + SILENT_SECONDS

    def until(self, holds: Callable[[], bool], missing: Callable[[], list[int]]) -> None:
        while not holds():
            now = time.monotonic()
            if now > min(self._say_at, self._deadline):
                ranks = missing()
                more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
                names = f"rank {', '.join(map(str, ranks[:_NAMED]))}{more}"
                said = f"{self._what}{names}, as {self._said_by} say; --single runs alone"
                if now > self._deadline:
                    raise RunError(f"{said}; nobody came in time")
                LOGGER.warning("%s", said)
                self._say_at = self._deadline
            time.sleep(self._every)


def _reaches(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def _listen(address: str, port: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store of rank 0: on the loopback, which no other machine can reach, where all ranks are on this one; torch's
    own listens everywhere."""
    options = {"is_master": True, "timeout": timeout, "wait_for_workers": False}
    try:
        if launcher.is_loopback(address):
            family = socket.getaddrinfo(address, port)[0][0]
            listening = socket.create_server((address, port), family=family, backlog=1024)
            options["master_listen_fd"] = listening.detach()
        return dist.TCPStore(address, port, world_size, **options)
    except (OSError, dist.DistError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(f"MASTER_ADDR:MASTER_PORT = {address}:{port} cannot be listened on: {why}") from error
