"""Several sets of samples as one: which of them a sample of the training is of, and how much each counts when measured.

The order stays a pure function of (seed, sample number): sets take turns by their shares (``order.turns_at``), and the
n-th turn of a set is the n-th sample of an order of its own, an epoch of which is one pass over it.
"""

import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from nt_dist.data.order import samples_at, turns_at, turns_before
from nt_dist.data.samples import Sample, Samples, TrainingSamples


@dataclass(frozen=True)
class Mixture:
    """Sets of samples by name, one behind the other: :class:`nt_dist.data.samples.TrainingSamples` again."""

    parts: Mapping[str, TrainingSamples]
    shares: Mapping[str, float]  # of the samples that are drawn, by the same names in the same order; they sum to 1

    @cached_property
    def firsts(self) -> list[int]:
        """The number of each set's first sample, and of one behind the last."""
        return list(accumulate(map(len, self.parts.values()), initial=0))

    def place(self, index: int) -> tuple[str, int]:
        """The name of the set of a sample, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.firsts, index) - 1
        return list(self.parts)[number], index - self.firsts[number]

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Sample:
        name, own = self.place(index)
        return self.parts[name][own]

    def drawn(self, index: int, number: int) -> Sample:
        """As the set's own."""
        name, own = self.place(index)
        return self.parts[name].drawn(own, number)

    def blank(self) -> Sample:
        """As those of all sets are."""
        return next(iter(self.parts.values())).blank()

    def at(self, seed: int, numbers: np.ndarray) -> np.ndarray:
        """The samples, int64 below ``len(self)`` [N], that have these global numbers [N]."""
        sets, turns = turns_at(list(self.shares.values()), numbers)
        found = np.empty(len(sets), dtype=np.int64)
        for number, (name, part) in enumerate(self.parts.items()):
            own = sets == number
            # a seed of its own: sets of one size would else go through alike orders
            order = samples_at(seed ^ (zlib.crc32(name.encode()) << 31), len(part), turns[own])
            found[own] = self.firsts[number] + order
        return found

    def drawn_before(self, number: int) -> dict[str, int]:
        """How many of the global samples below this number are of each set."""
        return dict(zip(self.parts, turns_before(list(self.shares.values()), number), strict=True))


def numbered(samples: TrainingSamples, seed: int, numbers: np.ndarray) -> np.ndarray:
    """Which samples, int64 below their number [N], have these global numbers of a training [N]."""
    if isinstance(samples, Mixture):
        return samples.at(seed, numbers)
    return samples_at(seed, len(samples), numbers)


def each_part(samples: Samples, change: Callable[[Samples], Samples]) -> Samples:
    """Samples that are changed as a whole; of a mixture each set is."""
    if isinstance(samples, Mixture):
        return replace(samples, parts={name: change(part) for name, part in samples.parts.items()})
    return change(samples)
