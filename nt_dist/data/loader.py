"""Batches: samples in training order for one data rank, and the fixed samples of an evaluation.

Global step g (counted from the first sample number) trains on the sample numbers [g·N, g·N + N), N = train.batch_size;
data rank r of D reads the r-th of D equal blocks of them. So any data degree trains on the same samples in each step.
Steps that would read numbers which were left out begin behind them.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from nt_dist.data.mixture import Mixture, numbered
from nt_dist.data.order import first_of_step
from nt_dist.data.samples import Sample, Samples, TrainingSamples

_STEPS_AHEAD = 2


class Batch(NamedTuple):
    """One micro-batch of B samples, of P positions each."""

    inputs: torch.Tensor  # what the model reads; of text, tokens, int64. [B, ...]
    targets: torch.Tensor  # the right class at each position; of text, the token that follows, int64. [B, P]
    weights: torch.Tensor  # 1 where the target is real, 0 on padding, float32. [B, P]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def pinned(self) -> "Batch":
        """The same batch in memory from which a GPU copies it without the host waiting."""
        return Batch(*(tensor.pin_memory() for tensor in self))


def collate(rows: Sequence[Sample]) -> Batch:
    """Put samples into one batch."""
    return Batch(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True)))


@dataclass(frozen=True)
class StepLoader:
    """The steps of one data rank, without end: each a list of micro-batches."""

    samples: TrainingSamples
    seed: int  # train.seed, which decides the order
    batch_size: int  # samples of a global step
    micro_batch_size: int  # times the data degree it divides batch_size
    data_rank: int = 0
    data_degree: int = 1
    start: int = 0  # first global sample number: the samples consumed so far
    num_workers: int = 0  # threads that read ahead; 0 reads when asked
    left_out: Sequence[tuple[int, int]] = ()  # ranges [first, end) of sample numbers, sorted, that no step reads
    pinned: bool = False  # for a GPU, which copies them while the host goes on

    def __post_init__(self) -> None:
        assert self.batch_size % (self.micro_batch_size * self.data_degree) == 0
        assert 0 <= self.data_rank < self.data_degree

    def step(self, first: int) -> list[Batch]:
        """The micro-batches of the step whose first global sample number is ``first``."""
        share = self.batch_size // self.data_degree
        numbers = first + self.data_rank * share + np.arange(share)
        indices = numbered(self.samples, self.seed, numbers)
        rows = [self.samples.drawn(*each) for each in zip(indices.tolist(), numbers.tolist(), strict=True)]
        size = self.micro_batch_size
        batches = [collate(rows[start : start + size]) for start in range(0, share, size)]
        return [batch.pinned() for batch in batches] if self.pinned else batches

    def __iter__(self) -> Generator[list[Batch]]:
        """Steps from ``start`` on; DataError when a sample cannot be read."""
        firsts = self._firsts()
        if self.num_workers == 0:
            yield from map(self.step, firsts)
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="nt_dist-loader")
        ahead: deque[Future[list[Batch]]] = deque()
        try:
            while True:
                while len(ahead) < self.num_workers * _STEPS_AHEAD:
                    ahead.append(pool.submit(self.step, next(firsts)))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _firsts(self) -> Iterator[int]:
        """The first sample number of each step, without end."""
        first = self.start
        while True:
            first = first_of_step(first, self.batch_size, self.left_out)
            yield first
            first += self.batch_size


def spread(samples: Samples, num_samples: int) -> np.ndarray:
    """The numbers of so many samples (0, or more than there are: all), evenly over all of them and in their order. [n]

    Samples in which several sets take turns say by an attribute ``turns`` how many: whole rounds are taken of these.
    Of each set of a mixture equally many are taken.
    """
    if isinstance(samples, Mixture):
        of_each = -(-num_samples // len(samples.parts))
        chosen = [spread(part, of_each) for part in samples.parts.values()]
        return np.concatenate([first + each for first, each in zip(samples.firsts, chosen, strict=False)])
    count, turns = len(samples), getattr(samples, "turns", 1)
    if not 0 < num_samples < count:
        return np.arange(count)
    rounds = -(-num_samples // turns)
    first = np.arange(rounds) * (count // turns) // rounds * turns
    return (first[:, None] + np.arange(turns)).reshape(-1)[:num_samples]


@dataclass(frozen=True)
class Chosen:
    """Some samples, spread over all, as samples to measure on; those of a mixture's sets weigh as their shares say."""

    samples: Samples
    num_samples: int  # see :func:`spread`

    @cached_property
    def numbers(self) -> list[int]:
        """Those of the samples that are used."""
        return spread(self.samples, self.num_samples).tolist()

    @cached_property
    def factors(self) -> dict[str, float]:
        """What the weights of each set of a mixture are multiplied with, by its name."""
        names = [self.samples.place(number)[0] for number in self.numbers]
        return {name: share * len(names) / names.count(name) for name, share in self.samples.shares.items()}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Sample:
        sample = self.samples[number := self.numbers[place]]
        if not isinstance(self.samples, Mixture):
            return sample
        name, _ = self.samples.place(number)
        return sample._replace(weights=sample.weights * np.float32(self.factors[name]))

    def blank(self) -> Sample:
        """As those of all samples are."""
        return self.samples.blank()


class StepsOnDevice:
    """Steps on ``device``, the next of which can be fetched while the device works on one."""

    def __init__(self, loader: StepLoader, device: torch.device):
        self._steps, self._device = iter(replace(loader, pinned=device.type == "cuda")), device
        self._ahead: Future[list[Batch]] | None = None

    def fetch(self) -> None:
        """Read the next step and begin its copies, unless that is done; what goes wrong is :meth:`__next__`'s."""
        if self._ahead is None:
            self._ahead = Future()
            try:
                self._ahead.set_result([batch.to(self._device) for batch in next(self._steps)])
            except Exception as problem:
                self._ahead.set_exception(problem)

    def __next__(self) -> list[Batch]:
        """The next step's micro-batches; DataError when a sample cannot be read."""
        self.fetch()
        ahead, self._ahead = self._ahead, None
        return ahead.result()

    def close(self) -> None:
        """End the threads that read ahead."""
        self._steps.close()


@dataclass(frozen=True)
class EvaluationBatches:
    """Samples spread over all, in their own order, as batches of one shape; every rank has equally many.

    Batch b of rank r of D holds B of them from (b·D + r)·B on; what lies past the last one has weight 0.
    """

    samples: Samples
    micro_batch_size: int  # B; it and D do not change what is evaluated
    num_samples: int  # see :func:`spread`
    data_rank: int = 0  # r
    data_degree: int = 1  # D

    def __post_init__(self) -> None:
        assert 0 <= self.data_rank < self.data_degree

    @cached_property
    def chosen(self) -> Chosen:
        """The samples that are used."""
        return Chosen(self.samples, self.num_samples)

    def by_source(self) -> dict[str, tuple["EvaluationBatches", float]]:
        """Of a mixture the batches of each set alone, whose samples have weight 1, and the factor of its sums in those
        of the mixture, by name; else empty."""
        if not isinstance(self.samples, Mixture):
            return {}
        of_each = -(-self.num_samples // len(self.samples.parts))
        return {
            name: (replace(self, samples=part, num_samples=of_each), self.chosen.factors[name])
            for name, part in self.samples.parts.items()
        }

    def __len__(self) -> int:
        return -(-len(self.chosen) // (self.micro_batch_size * self.data_degree))

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = (number * self.data_degree + self.data_rank) * self.micro_batch_size
        rows = [self.chosen[place] for place in range(first, min(first + self.micro_batch_size, len(self.chosen)))]
        return collate(rows + [self.samples.blank()] * (self.micro_batch_size - len(rows)))
