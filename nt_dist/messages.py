"""What a run says on standard error: messages, and below them a bar with the remaining time, or lines of it at times.

A bar redrawn into a batch system's log file fills it with megabytes, so where the stream is no terminal a line is
written at most every ten seconds, and later at most every hundredth of the time passed: a run of a week leaves some
hundred lines. Bars are drawn by functions of tqdm; its objects bring a thread, and a mean pace that one pause upsets.
"""

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TextIO

from tqdm import tqdm

from nt_dist.errors import printable

LOGGER = logging.getLogger("nt_dist")
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0
LINE_SHARE = 0.01  # of the time passed
PACE_SECONDS = 60.0  # the remaining time follows the pace of about the last minute


class ProgressBar(AbstractContextManager):
    """Shows how far something is, on standard error if nothing else is said; as a context, it closes itself.

    It goes from ``start`` (0, or a checkpoint's step) to ``total``; 0 where that is not known. A line begins with
    ``title``, and says how many steps are done where it ``counts``, otherwise only their share.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        title: str = "step",
        counts: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._step, self._title, self._counts = total, start, title, counts
        self._stream, self._clock = stream or sys.stderr, clock
        self._is_terminal = self._stream.isatty()
        self._draw = tqdm.status_printer(self._stream)  # over what was drawn before
        self._begin = self._last_update = clock()
        self._at_work = 0.0  # seconds that went into steps
        self._last_shown = -float("inf")
        self._steps_per_second = 0.0
        self._waiting: str | None = None  # a text that was not shown for want of time
        self._is_drawn = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, step: int, text: str = "", seconds: float | None = None) -> None:
        """Say that ``step`` is done; ``text`` stands behind the bar (the loss, the pace).

        So many ``seconds`` of the time since the last update went into steps, all if nothing is said. What stands
        between steps, as an evaluation does, counts in the remaining time by its share so far.
        """
        now = self._clock()
        is_end = step == self._total > self._step
        self._follow_pace(step, now, seconds)
        interval = REDRAW_SECONDS if self._is_terminal else max(LINE_SECONDS, LINE_SHARE * (now - self._begin))
        self._waiting = text
        if is_end or now - self._last_shown >= interval:
            self._last_shown = now
            self._show()

    def write(self, text: str) -> None:
        """Write whole lines; on a terminal above the bar, which comes back with the next update."""
        if self._is_drawn:
            self._draw("")
            self._stream.write("\r")
            self._is_drawn, self._last_shown = False, -float("inf")
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        """Leave the bar as it stands at last, and go to the next line."""
        if self._waiting is not None:
            self._show()
        if self._is_drawn:
            self._stream.write("\n")
            self._is_drawn = False
        self._stream.flush()

    def remaining_seconds(self) -> float | None:
        """Seconds to the end at the recent pace; None before the first step, or without a known end."""
        if not self._total or not self._steps_per_second:
            return None
        beside = (self._last_update - self._begin) / self._at_work if self._at_work else 1.0
        return (self._total - self._step) / self._steps_per_second * beside

    def _follow_pace(self, step: int, now: float, seconds: float | None) -> None:
        steps = step - self._step
        if steps <= 0:
            return
        seconds = now - self._last_update if seconds is None else seconds
        self._at_work += seconds
        # the mean pace since the start, and later of about the last minute; weighed by seconds rather than by updates,
        # so that one long step counts for what it is
        share = min(1.0, seconds / max(min(PACE_SECONDS, self._at_work), 1e-9))
        self._steps_per_second += share * (steps / max(seconds, 1e-9) - self._steps_per_second)
        self._step, self._last_update = step, now

    def _show(self) -> None:
        text, self._waiting = self._waiting, None
        counts = f"{self._step}/{self._total} " if self._counts else ""
        remaining = self.remaining_seconds()
        left = f"  {format_seconds(remaining)} left" if remaining else ""
        share = min(self._step / self._total, 1.0) if self._total else None
        if share is None:
            text += f" in {format_seconds(self._clock() - self._begin)}"
        if not self._is_terminal:
            percent = "" if share is None else f"({share:.0%})"
            self.write(f"{self._title} {counts}{percent}".rstrip() + f"  {text}{left}\n")
            return
        columns = shutil.get_terminal_size().columns - 1  # a full last column would wrap
        end = text if share is None else f"{counts}{share:4.0%}{left}  {text}"
        has_room = share is not None and len(self._title) + len(end) + 24 <= columns
        parts = {"bar_format": "{title} " + "[{bar:20}] " * has_room + "{end}", "title": self._title, "end": end}
        self._draw(tqdm.format_meter(self._step, self._total, 0, columns, ascii="-#", **parts)[:columns])
        self._is_drawn = True


def format_seconds(seconds: float) -> str:
    """Write 65 seconds as ``1:05``, and longer times as ``2:03:04`` or ``3 d 04:05``."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class BarHandler(logging.StreamHandler):
    """Writes messages to ``own`` (None: standard error), above the progress bar where there is one: on the main rank as
    they are, or as ``warning: message``, on another as ``[rank 3] warning: message``."""

    def __init__(self, rank: int = 0, own: TextIO | None = None) -> None:
        super().__init__()
        self.bar: ProgressBar | None = None
        self.own = own
        self._prefix = f"[rank {rank}] " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        """The message with what stands before it."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return self._prefix + level + printable(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a failure to write is reported by ``logging`` and stops nothing."""
        self.stream = self.bar or self.own or sys.stderr
        super().emit(record)


def start_logging(rank: int) -> None:
    """Makes this process log as its rank should; DeepSpeed's own logger is left at warnings.

    That torch calls functions of its own old is for DeepSpeed, which calls them, to heed.
    """
    LOGGER.handlers = [BarHandler(rank)]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
