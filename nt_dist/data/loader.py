"""Samples in training order for one data rank, and the fixed windows of an evaluation.

Global step g (counted from the first sample number) trains on the sample numbers [g·N, g·N + N), N = train.batch_size;
data rank r of D reads the r-th of D equal blocks of them. So any data degree trains on the same samples in each step.
Steps that would read numbers which were left out begin behind them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from nt_dist.data.batch import Batch, collate
from nt_dist.data.order import first_of_step, samples_at
from nt_dist.data.samples import Samples

_STEPS_AHEAD = 2


class StepLoader:
    """The steps of one data rank, without end: each a list of micro-batches.

    Args:
        samples: The training samples.
        seed: ``train.seed``, which decides the order.
        batch_size: Sequences in a global step.
        micro_batch_size: Sequences in a micro-batch; times the data degree it divides batch_size.
        data_rank: This rank's place on the data axis.
        data_degree: Ranks on the data axis.
        start: First global sample number: the samples consumed so far.
        num_workers: Threads that read ahead; 0 reads when asked.
        left_out: Ranges [first, end) of sample numbers, sorted, that no step reads.
    """

    def __init__(
        self,
        samples: Samples,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        data_rank: int = 0,
        data_degree: int = 1,
        start: int = 0,
        num_workers: int = 0,
        left_out: Sequence[tuple[int, int]] = (),
    ):
        assert batch_size % (micro_batch_size * data_degree) == 0 and 0 <= data_rank < data_degree
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.data_rank = data_rank
        self.data_degree = data_degree
        self.start = start
        self.num_workers = num_workers
        self.left_out = tuple(left_out)

    def step(self, first: int) -> list[Batch]:
        """The micro-batches of the step whose first global sample number is ``first``."""
        share = self.batch_size // self.data_degree
        numbers = first + self.data_rank * share + np.arange(share)
        indices = samples_at(self.seed, len(self.samples), numbers).reshape(-1, self.micro_batch_size)
        return [collate(self.samples, row, self.micro_batch_size) for row in indices]

    def __iter__(self) -> Iterator[list[Batch]]:
        """Steps from ``start`` on.

        Raises:
            DataError: When a sample cannot be read.
        """
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


class EvaluationBatches:
    """The first samples in their own order, as batches of one shape; every rank has equally many.

    Batch b of rank r of D holds the samples [(b·D + r)·B, (b·D + r)·B + B); what lies past the last one has weight 0.

    Args:
        samples: The validation samples.
        micro_batch_size: B.
        num_samples: How many of the first samples to use; 0, or more than there are: all.
        data_rank: This rank's place on the data axis.
        data_degree: D.
    """

    def __init__(
        self, samples: Samples, micro_batch_size: int, num_samples: int = 0, data_rank: int = 0, data_degree: int = 1
    ):
        assert 0 <= data_rank < data_degree
        self.samples = samples
        self.micro_batch_size = micro_batch_size
        self.num_samples = min(num_samples or len(samples), len(samples))
        self.data_rank = data_rank
        self.data_degree = data_degree

    def __len__(self) -> int:
        return -(-self.num_samples // (self.micro_batch_size * self.data_degree))

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(number)
        first = (number * self.data_degree + self.data_rank) * self.micro_batch_size
        indices = range(first, min(first + self.micro_batch_size, self.num_samples))
        return collate(self.samples, list(indices), self.micro_batch_size)


def evaluation_batches(
    samples: Samples, micro_batch_size: int, *, num_samples: int, data_rank: int = 0, data_degree: int = 1
) -> EvaluationBatches:
    """The batches of one evaluation on one data rank, read when asked for; see ``EvaluationBatches``.

    ``num_samples`` is ``run.eval_batches * train.batch_size`` (0: all), so that micro-batch size and data degree do
    not change what is evaluated.
    """
    return EvaluationBatches(samples, micro_batch_size, num_samples, data_rank, data_degree)
