"""The rank's side of the watch: starts the watcher of ``watcher.py`` and tells it where the others are.

Imports no torch: ranks of the tests have none.
"""

import contextlib
import faulthandler
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from nt_dist.config import Config
from nt_dist.errors import RunError
from nt_dist.parallel.agree import agree
from nt_dist.parallel.launcher import LOOPBACK, is_loopback
from nt_dist.watch.diagnosis import Limits
from nt_dist.watch.heartbeat import Heartbeat, map_shared, shared_file

if TYPE_CHECKING:
    from nt_dist.parallel.mesh import Mesh  # imports torch, which nothing here needs

T = TypeVar("T")
LOOK_SECONDS = 0.5
STOPPED, SILENCE, GRACE = 15.0, 30.0, 10.0
"""Seconds after which a stopped process, a silent host and a rank that outlives a dead one end the job, at most."""
FAILED = 1  # stands for the exit code that a rank with an error is about to leave with


@contextmanager
def watched(mesh: "Mesh", config: Config) -> Iterator[Heartbeat]:
    """Have this rank watched for as long as the context lasts; gives its heartbeat. Collective.

    With ``run.stall_timeout = 0`` nobody watches, and the beats are for nobody.

    Raises:
        RunError: On every rank: a watcher cannot be started on one of them.
    """
    stall = config.run.stall_timeout
    if not stall:
        yield Heartbeat()
        return
    with ExitStack() as stack:
        job = mesh.broadcast_object({"main_host": socket.gethostname(), "secret": secrets.token_hex(16)})
        heartbeat, control = _on_all(mesh, lambda: _start(stack, mesh, config, job))
        replies = stack.enter_context(control.makefile("rb"))
        port = mesh.broadcast_object(_on_all(mesh, lambda: _reply(replies)["port"] if mesh.is_main else 0))
        if not mesh.is_main:
            _tell(control, {"address": _address(), "port": port})
        _on_all(mesh, lambda: mesh.is_main or _reply(replies)["ready"])
        code = FAILED
        try:
            yield heartbeat
            code = 0
        finally:
            heartbeat.exited(code)
            replies.close()
            control.close()


def agree_patiently(mesh: "Mesh", work: Callable[[], T], heartbeat: Heartbeat) -> T:
    """Do ``work`` on the main rank alone, as :func:`agree` does, where it may take longer than a collective may wait.

    The other ranks look into the job's store for its end instead, so that signals reach them meanwhile.
    """
    if mesh.world_size == 1:
        return work()
    is_done, set_done = mesh.new_flag()

    def do() -> T:
        try:
            return work()
        finally:
            set_done()

    while not mesh.is_main and not is_done():
        heartbeat.beat()
        time.sleep(LOOK_SECONDS)
    return agree(mesh, do, only_main=True)


def _on_all(mesh: "Mesh", work: Callable[[], T]) -> T:
    """Do ``work`` on every rank; where it fails on one, raise RunError on all."""

    def named() -> T:
        try:
            return work()
        except OSError as error:
            where = f"rank {mesh.rank} on {socket.gethostname()}"
            raise RunError(f"{where} cannot be watched: {error}; run.stall_timeout = 0 goes on") from error

    return agree(mesh, named)


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def _reply(replies: BinaryIO) -> dict[str, Any]:
    line = replies.readline()
    if not line:
        raise OSError("its watcher has died at once")
    return json.loads(line)


def _start(stack: ExitStack, mesh: "Mesh", config: Config, job: dict[str, str]) -> tuple[Heartbeat, socket.socket]:
    """Start the watcher; everything that is opened here is closed with the context."""
    shared = shared_file()
    stack.callback(os.close, shared)
    dump = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (it is one)
    faulthandler.register(signal.SIGUSR2, file=dump, all_threads=True)
    stack.callback(faulthandler.unregister, signal.SIGUSR2)
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    run = config.run
    order = {
        "rank": mesh.rank,
        "size": mesh.world_size,
        "host": socket.gethostname(),
        **job,
        "limits": Limits(*(min(limit, run.stall_timeout) for limit in (STOPPED, SILENCE, GRACE))),
        "listen": _own_address(_address()) if mesh.is_main else None,
    }
    with theirs:
        handed = [shared, dump.fileno(), theirs.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", "nt_dist.watch.watcher", *map(str, (os.getpid(), *handed))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=handed,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
    stack.callback(_reap, process)
    _tell(ours, order)
    return Heartbeat(map_shared(shared), run.stall_timeout, run.phase_timeout), ours


def _address() -> str:
    """Where the ranks meet, and the watchers too: on one machine its loopback."""
    return os.environ.get("MASTER_ADDR", LOOPBACK)


def _own_address(address: str) -> tuple:
    """What rank 0's watcher listens on, as getaddrinfo gives it: ``address`` if others can reach it there, else all."""
    found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    reachable = is_loopback(address) or not is_loopback(found[4][0])  # /etc/hosts may have the host's name there
    with contextlib.suppress(OSError), socket.socket(found[0]) as probe:
        probe.bind(found[4])
        if reachable:
            return found
    return socket.getaddrinfo(None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE, family=found[0])[0]


def _reap(process: subprocess.Popen) -> None:
    """Wait for a watcher that knows that its rank has left; rank 0's may still serve the others."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
