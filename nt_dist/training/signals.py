"""Preemption: a signal asks the run to save and leave, and all ranks do so after the same step.

SIGTERM is what launchers and schedulers send to end a job, SIGUSR1 what SLURM is asked to send before the time limit
(launch_scripts/slurm.sbatch). A second one leaves at once, with 128 + its number, as a shell counts.

Python runs a handler only between two instructions of the main thread, which may stand in a collective for long. So the
handlers' part that cannot wait is done by a thread, which the C half of every handler wakes through a socket.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from nt_dist.errors import NTDistError
from nt_dist.watch.heartbeat import Heartbeat

if TYPE_CHECKING:
    from nt_dist.parallel.mesh import Mesh  # imports torch

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LEFT_EARLY = 75
"""Exit code of a run that was asked to leave and is not done: EX_TEMPFAIL, "try again" (sysexits.h)."""

SAME_SECONDS = 2.0  # a scheduler tells the launcher and the ranks, and the launcher tells the ranks again


class ExitRequested(NTDistError):
    """A signal came where there is nothing to save: while data is prepared, or before the first step."""


class ExitRequest:
    """Whether this rank has been asked to leave."""

    def __init__(self):
        self.heartbeat = Heartbeat()  # told of the first signal, and of leaving at the second
        self._at: float | None = None
        self._interrupts = False

    @property
    def is_set(self) -> bool:
        """Whether a signal has come to this rank."""
        return self._at is not None

    def is_set_anywhere(self, mesh: "Mesh") -> bool:
        """Whether any rank has been asked; the same on every rank, and collective."""
        return mesh.any(self.is_set)[0]

    def check_before_first_step(self, mesh: "Mesh") -> None:
        """Raise ExitRequested, where no step has been done yet, on every rank if any has been asked. Collective."""
        if self.is_set_anywhere(mesh):
            why = "asked to leave before a first step: there is nothing to save, the same command starts anew"
            raise ExitRequested(why)

    @contextmanager
    def interrupts_work(
        self, meanwhile: str = "data was prepared: what is done is kept, the same command goes on with it"
    ) -> Iterator[None]:
        """Let a signal end, by ExitRequested, what this context does: something that can be stopped anywhere."""
        what = f"asked to leave while {meanwhile}"
        self._interrupts = True
        try:
            if self.is_set:
                raise ExitRequested(what)
            yield
        except NTDistError as error:  # the same signal may have ended processes that work for this one
            if self.is_set:
                raise ExitRequested(what) from error
            raise
        finally:
            self._interrupts = False

    def until_set(self, mesh: "Mesh", things: Iterable[T], stopped: Callable[[], None]) -> Iterator[T]:
        """Give one thing after the other, and call ``stopped`` and end early once any rank has been asked. Collective.

        Every rank must have as many things; each one begins with a beat.
        """
        for thing in things:
            self.heartbeat.beat()
            yield thing
            if self.is_set_anywhere(mesh):
                stopped()
                return

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """The handler, in the main thread: when that comes round to it."""
        self._first()
        if self._interrupts:
            self._interrupts = False
            raise ExitRequested(signal.Signals(number).name)

    def _listen(self, socket_of_numbers: socket.socket) -> None:
        """The thread: each byte is the number of a signal that has come just now."""
        while numbers := socket_of_numbers.recv(64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if self.is_set and time.monotonic() - self._at > SAME_SECONDS:
                    self.heartbeat.exited(128 + number)
                    os._exit(128 + number)
                self._first()

    def _first(self) -> None:
        if self._at is None:
            self._at = time.monotonic()
            self.heartbeat.exit_requested()


@contextmanager
def listening() -> Iterator[ExitRequest]:
    """Listen to the signals for as long as the context lasts; before and after it they end the process as always.

    To be entered in the main thread, as Python demands of all that sets handlers.
    """
    exit_request = ExitRequest()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    thread = threading.Thread(target=exit_request._listen, args=(ours,), name="signals", daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, exit_request._handle) for number in SIGNALS}
    try:
        yield exit_request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        theirs.close()  # ends the thread
        thread.join()
        ours.close()
