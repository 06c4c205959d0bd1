"""Taking turns, taking the time, and what is said of several rounds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spread:
    """A figure measured in several rounds."""

    rounds: list[float] = field(repr=False)

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({min(self.rounds):.3f}-{max(self.rounds):.3f})"


class Clock:
    """Time of work, the device's included.

    Args:
        synchronize: Waits for the device.
        now: Seconds on some clock.
    """

    def __init__(self, synchronize: Callable[[], None], now: Callable[[], float] = time.perf_counter):
        self._synchronize, self._now = synchronize, now

    def seconds(self, work: Callable[[], None], times: int) -> float:
        """Does `work` so often and returns the seconds it took together."""
        self._synchronize()
        start = self._now()
        for _ in range(times):
            work()
        self._synchronize()
        return self._now() - start


def rotated(names: list, number: int) -> list:
    """The names, beginning with another one each round."""
    start = number % len(names)
    return names[start:] + names[:start]
