"""The rank that a watcher watches, from outside: whether it is there, beats and works. Only the standard library."""

import contextlib
import os
import resource
import signal
import time

from nt_dist.watch.diagnosis import Limits, View
from nt_dist.watch.heartbeat import NANO, PHASES, map_shared, read_sign

WORK_SHARE, WORK_BYTES = 0.02, 1 << 16  # of a processor, or read and written, within Limits.idle: less is no work
TICKS = os.sysconf("SC_CLK_TCK")  # a second
MAX_DUMP = 1 << 16  # bytes of what a rank says of where its threads stand


class RankProcess:
    """The rank that this process watches: its parent."""

    def __init__(self, pid: int, shared: int, dump: int):
        self.pid, self._memory, self._dump = pid, map_shared(shared), dump
        self._excused = 0  # nanoseconds that this process was stopped since the last beat
        self._beats, self._late, self._stopped_since = -1, 0, None
        self._worked: tuple[int, float, int] | None = None  # when it was last seen to work, and what it had done
        self._asked_at, self._stands = 0, False  # when it was asked where it stands, and whether it should work there

    def look(self, view: View, gap: float, limits: Limits) -> None:
        """Bring ``view`` up to date; ``gap`` is what this process itself has slept too long, in seconds."""
        sign, now = read_sign(self._memory), time.monotonic_ns()
        if sign.beats != self._beats:
            self._beats, self._excused, self._worked = sign.beats, 0, None
            view.stuck = self._stands = False
        self._excused += int(gap * NANO)
        is_late = bool(sign.deadline) and not sign.left and now > sign.deadline + self._excused
        self._late = self._late + 1 if is_late else 0
        if self._state() != "T" or gap:
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        view.phase, view.step, view.beats = PHASES[sign.phase], sign.step, sign.beats
        view.idle = (now - sign.at - self._excused) / NANO
        if sign.works and not sign.left and view.idle >= limits.idle / 8 and not gap:
            self._look_closer(view, now, limits.idle)
        view.late = self._late > 1 or self._stands  # twice: a sign may be torn
        view.stopped = 0.0 if self._stopped_since is None else (now - self._stopped_since) / NANO
        view.gone, view.code = bool(sign.left) or self._is_dead(), sign.left - 1 if sign.left else None

    def _look_closer(self, view: View, now: int, limit: float) -> None:
        """See whether it works, where it may take as long as it does; if not, ask whether it waits for others."""
        seconds, size = work_of(self.pid, os.getpid())
        if self._worked is None or (
            abs(seconds - self._worked[1]) >= WORK_SHARE * limit or abs(size - self._worked[2]) >= WORK_BYTES
        ):
            self._worked, view.stuck, self._stands = (now, seconds, size), False, False
        elif now - max(self._worked[0], self._asked_at) >= limit * NANO:
            self._asked_at = now
            view.threads = self.threads()
            view.stuck = view.waits
            self._stands = not view.waits and not view.waits_for_another_run

    def _is_dead(self) -> bool:
        return os.getppid() != self.pid

    def _state(self) -> str:
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{self.pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
        return ""

    def threads(self) -> str:
        """Where its threads stand; empty if it cannot say so, as when it is dead or stopped."""
        if self._is_dead() or self._stopped_since is not None:
            return ""
        before = end = os.fstat(self._dump).st_size
        os.kill(self.pid, signal.SIGUSR2)
        for _ in range(20):  # until it has written something and writes no more
            time.sleep(0.05)
            last, end = end, os.fstat(self._dump).st_size
            if before < end == last:
                break
        return os.pread(self._dump, MAX_DUMP, before).decode(errors="replace")

    def kill(self) -> None:
        """End it, whatever it does."""
        if not self._is_dead():
            os.kill(self.pid, signal.SIGKILL)


def work_of(pid: int, without: int) -> tuple[float, int]:
    """What a process and its children, but for one, have done: seconds on a processor or in wait for one, which others
    have, and bytes read and written or come from the disk into memory."""
    seconds, size, waiting = 0.0, 0, [pid]
    while waiting:
        folder = f"/proc/{waiting.pop()}"
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            with open(f"{folder}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            seconds += sum(map(int, fields[11:15])) / TICKS  # with that of children that have ended
            size += int(fields[9]) * resource.getpagesize()
            for task in os.listdir(f"{folder}/task"):
                with open(f"{folder}/task/{task}/children", "rb") as file:
                    waiting += [child for child in map(int, file.read().split()) if child != without]
                with contextlib.suppress(OSError), open(f"{folder}/task/{task}/schedstat", "rb") as file:
                    seconds += int(file.read().split()[1]) / NANO
            with open(f"{folder}/io", "rb") as file:
                size += sum(int(line.split()[1]) for line in file if line.startswith((b"rchar", b"wchar")))
    return seconds, size
