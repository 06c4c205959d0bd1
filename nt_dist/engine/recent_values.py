"""How far a figure stands above what it has lately been, by statistics that single outliers do not move.

Location is the median and scale the median absolute deviation (MAD) of a window, times 1.4826, which makes it the
standard deviation where the figures are normal (Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation",
JASA 1993, equation 1.1). A mean and a standard deviation would be carried off by the very spikes to be found.
"""

from collections import deque
from statistics import median

NORMAL = 1.4826


class RecentValues:
    """The last figures of a series.

    Args:
        window: Figures kept; until there are as many, nothing is judged.
        floor: Smallest scale taken, so that a series that hardly moves does not make a spike of a ripple.
    """

    def __init__(self, window: int, floor: float):
        assert window >= 1 and floor > 0
        self._floor = floor
        self._figures: deque[float] = deque(maxlen=window)

    def excess(self, figure: float) -> float:
        """Scales by which ``figure`` is above the median; negative below it, 0 as long as the window is not full."""
        if len(self._figures) < self._figures.maxlen:
            return 0.0
        middle = median(self._figures)
        scale = NORMAL * median(abs(each - middle) for each in self._figures)
        return (figure - middle) / max(scale, self._floor)

    def add(self, figure: float) -> None:
        """Append a figure; the oldest one leaves."""
        self._figures.append(figure)

    @property
    def figures(self) -> list[float]:
        """The figures kept, oldest first; may be set, from a checkpoint (of the last ``window`` if there are more)."""
        return list(self._figures)

    @figures.setter
    def figures(self, figures: list[float]) -> None:
        self._figures = deque(figures, maxlen=self._figures.maxlen)
