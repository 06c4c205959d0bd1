"""A rank's sign of life: its phase, its step and until when it must be heard of again, in memory that others can read.

Written by the training's main thread, with a few stores and no system call; read by the process of ``watcher.py``,
which needs neither this process's interpreter lock nor its cooperation. This module imports only the standard library.
"""

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

PHASES = ("starting", "preparing data", "building", "loading", "compiling")  # and the rest of a first step
PHASES += ("stepping", "updating topology", "evaluating", "saving", "ending", "reading", "writing")
PATIENT = ("preparing data",)  # may take hours without a beat, as long as it works
STEADY = ("stepping", "updating topology", "evaluating", "reading", "writing")  # go on as they began
SLACK = 5.0  # a phase may take so many times as long as the longest between two beats in it so far
LEAVING = 20.0  # seconds for a beat once a signal has asked to leave: launchers kill 30 s after theirs
_FIELDS = struct.Struct("<7q")
_PAGE = mmap.PAGESIZE
NANO = 1_000_000_000


class Sign(NamedTuple):
    """What the memory holds; times are of the monotonic clock, in nanoseconds, which all processes of a host share."""

    beats: int
    at: int  # when the last beat was
    deadline: int  # when the next one is due; 0: never
    phase: int  # its number in PHASES
    step: int
    left: int  # 1 + the exit code of a rank that has left on its own; 0: it has not
    works: int  # 1: how long until the next beat is not known, so that it must be seen to work meanwhile


def read_sign(memory: mmap.mmap) -> Sign:
    """Read a sign; it may be torn between two beats, so that a judgement takes two readings."""
    return Sign(*_FIELDS.unpack_from(memory))


def shared_file() -> int:
    """Make the memory of one rank and return its descriptor, which a child process can inherit; no disk has a part."""
    descriptor = os.memfd_create("heartbeat")
    os.truncate(descriptor, _PAGE)
    return descriptor


def map_shared(descriptor: int) -> mmap.mmap:
    """Map the memory of a descriptor of :func:`shared_file`."""
    return mmap.mmap(descriptor, _PAGE)


class Heartbeat:
    """The rank's side: says in which phase the main thread is and that it gets on.

    ``memory`` is None where nobody watches; the timeouts, in seconds, are those of the section ``run``.

    Attributes:
        is_exit_requested: Whether a signal has asked this rank to leave.
    """

    def __init__(self, memory: mmap.mmap | None = None, stall_timeout: float = 0.0, phase_timeout: float = 0.0):
        self._memory, self._stall, self._phase_limit = memory, stall_timeout, phase_timeout
        self._longest: dict[str, int] = {}  # nanoseconds between two beats, by phase
        self._beats = self._step = self._at = 0
        self._phase = "starting"
        self.is_exit_requested = False
        self.beat()

    def enter(self, phase: str, step: int | None = None) -> None:
        """Say that a phase begins (of step ``step``, where that changes); this is a beat."""
        now = time.monotonic_ns()
        if self._beats:
            self._longest[self._phase] = max(self._longest.get(self._phase, 0), now - self._at)
        self._phase, self._step = phase, self._step if step is None else step
        self._beats, self._at = self._beats + 1, now
        seconds = self.allowance()
        is_known = self._phase in STEADY and self._phase in self._longest
        self._write(deadline=0 if seconds is None else now + int(seconds * NANO), works=not is_known)

    def beat(self) -> None:
        """Say that the phase gets on."""
        self.enter(self._phase)

    @contextmanager
    def working(self, phase: str) -> Iterator[Callable[[], None]]:
        """Be in a phase while the context lasts, and then in the one before; gives what says that it gets on.

        It is for a rank's own work: one that waits for others is in a phase that may take longer, as each of those has
        its own limit.
        """
        before = self._phase
        self.enter(phase)
        try:
            yield self.beat
        finally:
            self.enter(before)

    def exit_requested(self) -> None:
        """Say that a signal has asked this rank to leave, which shortens a step's allowance; from any thread."""
        self.is_exit_requested = True
        seconds = self.allowance()
        if self._memory and seconds is not None:
            sign = read_sign(self._memory)
            due = time.monotonic_ns() + int(seconds * NANO)
            _FIELDS.pack_into(self._memory, 0, *sign._replace(deadline=min(sign.deadline or due, due)))

    def exited(self, code: int) -> None:
        """Say that this rank leaves on its own, with an exit code."""
        self._write(left=code + 1)

    def allowance(self) -> float | None:
        """Seconds until the next beat must come; None: it need not."""
        if self._phase in PATIENT:
            return None
        longest = self._longest.get(self._phase) if self._phase in STEADY else None
        if longest is None:  # or a first time, when kernels are compiled
            return self._phase_limit
        usual = SLACK * longest / NANO
        return max(usual, min(self._stall, LEAVING) if self.is_exit_requested else self._stall)

    def _write(self, deadline: int = 0, left: int = 0, works: bool = False) -> None:
        if self._memory:
            phase = PHASES.index(self._phase)
            _FIELDS.pack_into(self._memory, 0, self._beats, self._at, deadline, phase, self._step, left, works)
