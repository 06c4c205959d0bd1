"""The rank's side of the watch: starts the watcher of ``watcher.py`` and tells it where the others are.

Imports no torch: ranks of the tests have none.
"""

import contextlib
import faulthandler
import itertools
import json
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nt_dist.config import Config
from nt_dist.errors import RunError
from nt_dist.parallel.agree import agree
from nt_dist.parallel.launcher import LOOPBACK, is_loopback
from nt_dist.watch.diagnosis import Limits
from nt_dist.watch.heartbeat import Heartbeat, map_shared, shared_file

if TYPE_CHECKING:
    from nt_dist.parallel.mesh import Mesh  # imports torch, which nothing here needs

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)
LOOK_SECONDS = 0.5
LOOKS = 5000  # of all ranks in a second, at most
LIMITS = Limits(stopped=15.0, silence=30.0, grace=10.0, idle=math.inf)  # at most; none is longer than run.stall_timeout
BACKLOG = 4096  # watchers that come at the same time
RESTART_SECONDS = (0.5, 2.0, 10.0, 60.0)  # before a watcher that died is replaced, each time
FAILED = 1  # stands for the exit code that a rank with an error is about to leave with


@contextmanager
def watched(mesh: "Mesh", config: Config) -> Iterator[Heartbeat]:
    """Have this rank watched for as long as the context lasts; gives its heartbeat. Collective.

    With ``run.stall_timeout = 0`` nobody watches, and the beats are for nobody. RunError on every rank if a watcher
    cannot be started on one of them.
    """
    if not config.run.stall_timeout:
        yield Heartbeat()
        return
    with ExitStack() as stack:
        address = os.environ.get("MASTER_ADDR", LOOPBACK)  # where the ranks meet, and the watchers too
        server = _on_all(mesh, lambda: _open_server(stack, address) if mesh.is_main and mesh.world_size > 1 else None)
        where = server.getsockname() if server else ""
        where = where if isinstance(where, str) else where[1]  # the path of a Unix socket, or a port
        job = {"main_host": socket.gethostname(), "secret": secrets.token_hex(16), "where": where}
        job = {**mesh.broadcast_object(job), "address": address}
        heartbeat, watcher = _on_all(mesh, lambda: _start(stack, mesh, config, job, server))
        code = FAILED
        try:
            yield heartbeat
            code = 0
        finally:
            watcher.is_ending.set()
            heartbeat.exited(code)


def agree_patiently(mesh: "Mesh", work: Callable[[], T], heartbeat: Heartbeat) -> T:
    """Do ``work`` on the main rank alone, as :func:`agree` does, where it may take longer than a collective may wait.

    The other ranks look into the job's store for its end instead, so that signals reach them meanwhile; one that
    reaches any of them is passed on to the main rank.
    """
    if mesh.world_size == 1:
        return work()
    is_done, set_done = mesh.new_flag()
    is_asked, set_asked = mesh.new_flag()
    is_over = threading.Event()

    def pass_on() -> None:
        while not is_over.wait(LOOK_SECONDS) and not heartbeat.is_exit_requested:
            if is_asked():
                os.kill(os.getpid(), signal.SIGUSR1)

    def do() -> T:
        thread = threading.Thread(target=pass_on, name="signals of others", daemon=True)
        thread.start()
        try:
            return work()
        finally:
            is_over.set()
            thread.join()
            set_done()

    while not mesh.is_main and not is_done():
        if heartbeat.is_exit_requested:
            set_asked()
        heartbeat.beat()
        time.sleep(max(LOOK_SECONDS, mesh.world_size / LOOKS))
    return agree(mesh, do, only_main=True)


def _on_all(mesh: "Mesh", work: Callable[[], T]) -> T:
    """Do ``work`` on every rank; where it fails on one, raise RunError on all."""
    where, advice = f"rank {mesh.rank} on {socket.gethostname()}", "run.stall_timeout = 0 goes on"
    return agree(mesh, work, lambda problem: RunError(f"{where} cannot be watched: {problem}; {advice}"))


def _start(
    stack: ExitStack, mesh: "Mesh", config: Config, job: dict[str, Any], server: socket.socket | None
) -> tuple[Heartbeat, "WatcherProcess"]:
    """Start the watcher; everything that is opened here is closed with the context."""
    shared = shared_file()
    stack.callback(os.close, shared)
    dump = stack.enter_context(os.fdopen(os.memfd_create("stacks"), "w+b"))
    faulthandler.register(signal.SIGUSR2, file=dump, all_threads=True)
    stack.callback(faulthandler.unregister, signal.SIGUSR2)
    run = config.run
    limits = [min(limit, run.stall_timeout) for limit in LIMITS]  # the last is that
    order = {**job, "rank": mesh.rank, "size": mesh.world_size, "host": socket.gethostname(), "limits": limits}
    watcher = WatcherProcess(order, [shared, dump.fileno()], server)
    watcher.start()
    stack.callback(watcher.close)
    threading.Thread(target=watcher.keep, name="watcher", daemon=True).start()
    return Heartbeat(map_shared(shared), run.stall_timeout, run.phase_timeout), watcher


class WatcherProcess:
    """The watcher of this rank: one that dies is replaced, with a warning.

    ``shared`` are the descriptors of the heartbeat and of the dumps; ``server`` is where rank 0's watcher listens.

    Attributes:
        is_ending: To be set before the rank leaves, and the watcher with it.
    """

    def __init__(self, order: dict[str, Any], shared: list[int], server: socket.socket | None):
        self._order, self._shared, self._server = order, shared, server
        self.is_ending = threading.Event()

    def start(self) -> None:
        """Start it; an OSError if it does not answer."""
        self._control, theirs = socket.socketpair()
        with theirs:
            handed = [*self._shared, theirs.fileno(), *([self._server.fileno()] if self._server else [])]
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", "nt_dist.watch.watcher", *map(str, (os.getpid(), *handed))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=handed,
                env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            )
        self._control.sendall(json.dumps(self._order).encode() + b"\n")
        if not self._control.recv(64):
            raise OSError("its watcher has died at once")

    def keep(self) -> None:
        """Start another one whenever it dies, until the rank leaves; this is a thread."""
        for pause in itertools.chain(RESTART_SECONDS, itertools.repeat(RESTART_SECONDS[-1])):
            code = self._process.wait()
            if self.is_ending.is_set():
                return
            rank = self._order["rank"], self._order["host"]
            _LOGGER.warning("rank %d on %s: its watcher has died (%d); another one is started", *rank, code)
            self._control.close()
            if self.is_ending.wait(pause):
                return
            try:
                self.start()
            except OSError as problem:
                _LOGGER.warning("rank %d on %s is not watched: %s", *rank, problem)

    def close(self) -> None:
        """Tell the watcher that this rank has left, and wait for it; rank 0's may still serve the others."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.1)


def _open_server(stack: ExitStack, address: str) -> socket.socket:
    """Open what the other watchers come to, for as long as the context lasts: a watcher that dies leaves it to another.

    Ranks on one machine meet in a folder that no other user can enter, those of several at a port.
    """
    if is_loopback(address):
        with contextlib.suppress(OSError):  # the path is too long for a socket
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nt_dist-", ignore_cleanup_errors=True))
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(f"{folder}/watch")
            server.listen(BACKLOG)
            return server
    return stack.enter_context(_listen(address))


def _listen(address: str) -> socket.socket:
    """Open rank 0's port, to which the other watchers come: at ``address`` if they can reach it there, else at all."""
    family, _, _, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    if is_loopback(address) or not is_loopback(where[0]):  # /etc/hosts may have the host's own name there
        with contextlib.suppress(OSError):  # it is no address of this machine
            return socket.create_server(where[:2], family=family, backlog=BACKLOG)
    return socket.create_server(("", 0), family=family, backlog=BACKLOG)
