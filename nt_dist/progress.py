"""How far a run is: a bar with the remaining time on a terminal, plain lines at growing intervals elsewhere.

A bar redrawn into a batch system's log file fills it with megabytes, so where the stream is no terminal a line is
written at most every ten seconds, and later at most every hundredth of the time passed: a run of a week leaves some
hundred lines.
"""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0
LINE_SHARE = 0.01  # of the time passed
PACE_SECONDS = 60.0  # the remaining time follows the pace of about the last minute


class ProgressBar:
    """Shows the steps of one run on a stream.

    Args:
        total: The step at which the run ends.
        start: The step it starts from (0, or a checkpoint's).
        stream: Where to write; standard error if None.
        clock: Seconds from any origin.
    """

    def __init__(
        self, total: int, start: int = 0, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self.is_terminal = self._stream.isatty()
        self._begin = self._last_update = clock()
        self._last_shown = -float("inf")
        self._step = start
        self._steps_per_second = 0.0
        self._drawn = 0  # characters of the bar that stand on the terminal's last line

    def update(self, step: int, text: str = "") -> None:
        """Says that ``step`` is done; ``text`` follows the bar (the loss, the pace)."""
        now = self._clock()
        self._follow_pace(step, now)
        interval = REDRAW_SECONDS if self.is_terminal else max(LINE_SECONDS, LINE_SHARE * (now - self._begin))
        if now - self._last_shown >= interval or step == self._total:
            self._last_shown = now
            self._show(text)

    def line(self, text: str) -> None:
        """Writes a line of its own; on a terminal above the bar, which comes back with the next update."""
        self._clear()
        self._stream.write(text + "\n")
        self._stream.flush()
        self._last_shown = -float("inf") if self.is_terminal else self._last_shown

    def close(self) -> None:
        """Leaves the bar as it stands and goes to the next line."""
        if self._drawn:
            self._stream.write("\n")
            self._drawn = 0
        self._stream.flush()

    def remaining_seconds(self) -> float | None:
        """Seconds to the end at the recent pace; None before the first step."""
        return (self._total - self._step) / self._steps_per_second if self._steps_per_second else None

    def _follow_pace(self, step: int, now: float) -> None:
        steps, seconds = step - self._step, now - self._last_update
        if steps <= 0:
            return
        # the mean pace since the start, and later of about the last minute; weighed by seconds rather than by updates,
        # so that a step behind which an evaluation stands counts for what it is
        share = min(1.0, seconds / max(min(PACE_SECONDS, now - self._begin), 1e-9))
        pace = steps / max(seconds, 1e-9)
        self._steps_per_second = (1 - share) * self._steps_per_second + share * pace
        self._step, self._last_update = step, now

    def _show(self, text: str) -> None:
        share = self._step / max(self._total, 1)
        remaining = self.remaining_seconds()
        left = "" if remaining is None else f"  {format_seconds(remaining)} left"
        counts = f"{self._step}/{self._total}"
        if not self.is_terminal:
            self._stream.write(f"step {counts} ({share:.0%})  {text}{left}\n")
            self._stream.flush()
            return
        columns = shutil.get_terminal_size().columns - 1  # a full last column would wrap
        tail = f" {counts} {share:4.0%}{left}  {text}"
        width = max(0, min(20, columns - len(tail) - 2))
        bar = f"[{'#' * int(share * width):-<{width}}]" if width >= 5 else ""
        shown = (bar + tail)[:columns]
        self._stream.write("\r" + shown + " " * max(0, self._drawn - len(shown)))
        self._stream.flush()
        self._drawn = max(len(shown), 1)

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._drawn = 0


def format_seconds(seconds: float) -> str:
    """``1:05``, ``2:03:04`` or ``3 d 04:05``.

    Examples:
        >>> format_seconds(65)
        '1:05'
    """
    whole = int(seconds + 0.5)
    minutes, seconds_part = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{seconds_part:02d}" if hours else f"{minutes}:{seconds_part:02d}"
