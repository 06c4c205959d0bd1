"""How far preparing has come: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 30
_BAR_SECONDS = 0.1
_LINE_SECONDS = 10.0


class Progress:
    """A bar that is drawn while a ``with`` block works.

    Args:
        title: What is being done.
        total: Units of work, as ``update`` counts them; 0 where that is not known.
        stream: Where to write; stderr when None.
    """

    def __init__(self, title: str, total: int = 0, stream: TextIO | None = None):
        self._title, self._total = title, total
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._start = self._drawn = time.monotonic()
        self._last = ""

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, note: str) -> None:
        """Say how much is done; drawn only when some time has passed.

        Args:
            done: Units of work.
            note: What stands behind the bar.
        """
        now = time.monotonic()
        self._last = self._text(done, note, now - self._start)
        if now - self._drawn >= (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS):
            self._drawn = now
            self._stream.write(f"\r{self._last}\x1b[K" if self._is_terminal else f"{self._last}\n")
            self._stream.flush()

    def _text(self, done: int, note: str, seconds: float) -> str:
        if not self._total:
            return f"{self._title}: {note} in {_clock(seconds)}"
        share = min(done / self._total, 1.0)
        filled = int(share * _WIDTH)
        bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] " if self._is_terminal else ""
        left = f", {_clock(seconds * (1 - share) / share)} left" if 0 < share < 1 else ""
        return f"{self._title}: {bar}{share:4.0%}, {note} in {_clock(seconds)}{left}"

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._last:
            self._stream.write(f"\r{self._last}\x1b[K\n" if self._is_terminal else f"{self._last}\n")
            self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
