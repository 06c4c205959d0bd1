"""Batches: the same samples in each step whatever the data degree, exact resume, evaluation on fixed shapes."""

import itertools
import threading
from unittest import mock

import numpy as np
import pytest
import torch

from nt_dist.data.loader import Batch, EvaluationBatches, StepLoader, StepsOnDevice, spread
from nt_dist.data.order import samples_at
from nt_dist.data.samples import Sample
from nt_dist.errors import DataError


class Numbered:
    """Samples that hold their own number."""

    sequence_length = 3

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        assert 0 <= index < self.count
        return Sample(np.full(3, index), np.full(3, index + 1), np.ones(3, dtype=np.float32))

    def drawn(self, index, number):
        return self[index]

    def blank(self):
        return Sample(np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.float32))


def steps(count, **arguments):
    return list(itertools.islice(StepLoader(Numbered(50), 5, 12, **arguments), count))


def numbers(micro_batches):
    return [row for batch in micro_batches for row in batch.inputs[:, 0].tolist()]


def test_shapes_and_types():
    (step,) = steps(1, micro_batch_size=4)
    assert len(step) == 3
    for batch in step:
        assert [tuple(tensor.shape) for tensor in batch] == [(4, 3)] * 3
        assert [tensor.dtype for tensor in batch] == [torch.int64, torch.int64, torch.float32]
        assert torch.equal(batch.targets, batch.inputs + 1)
    assert isinstance(step[0].to("cpu"), Batch)


@pytest.mark.parametrize(("micro_batch_size", "degree"), [(12, 1), (4, 1), (6, 2), (2, 2), (4, 3), (1, 4)])
def test_any_degree_trains_on_the_same_samples_in_the_same_order(micro_batch_size, degree):
    ranks = [steps(6, micro_batch_size=micro_batch_size, data_rank=rank, data_degree=degree) for rank in range(degree)]
    for step in range(6):
        together = list(itertools.chain(*(numbers(rank[step]) for rank in ranks)))
        assert together == samples_at(5, 50, np.arange(12) + 12 * step).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_left_out_are_jumped_over_and_no_others(num_workers):
    found = steps(4, micro_batch_size=4, start=12, num_workers=num_workers, left_out=[(24, 36), (48, 60)])
    wanted = [samples_at(5, 50, np.arange(12) + first).tolist() for first in (12, 36, 60, 72)]
    assert [numbers(step) for step in found] == wanted


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_start_in_the_middle_and_any_number_of_workers_change_nothing(num_workers):
    whole = steps(10, micro_batch_size=4)
    later = steps(4, micro_batch_size=4, start=72, num_workers=num_workers)
    assert [numbers(step) for step in later] == [numbers(step) for step in whole[6:]]


def test_threads_are_gone_when_the_iterator_is_closed():
    iterator = iter(StepLoader(Numbered(50), 5, 12, 4, num_workers=2))
    next(iterator)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("nt_dist-loader")]
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nt_dist-loader")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_sample_is_raised(num_workers):
    class Broken(Numbered):
        def __getitem__(self, index):
            raise DataError("train.bin: cannot be read")

    with pytest.raises(DataError, match="train.bin"):
        next(iter(StepLoader(Broken(50), 5, 12, 4, num_workers=num_workers)))


@pytest.mark.parametrize(
    ("micro_batch_size", "degree", "num_samples"), [(4, 1, 0), (4, 1, 9), (4, 3, 10), (5, 2, 3), (2, 4, 999)]
)
def test_evaluation_covers_each_sample_once_on_equal_shapes(micro_batch_size, degree, num_samples):
    samples = Numbered(23)
    wanted = {0: range(23), 9: [0, 2, 5, 7, 10, 12, 15, 17, 20], 3: [0, 7, 15]}.get(num_samples, range(23))
    if num_samples == 10:
        wanted = [0, 2, 4, 6, 9, 11, 13, 16, 18, 20]
    ranks = [
        EvaluationBatches(samples, micro_batch_size, num_samples=num_samples, data_rank=rank, data_degree=degree)
        for rank in range(degree)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = []
    for batches in ranks:
        assert len(list(batches)) == len(batches)
        for batch in batches:
            assert batch.inputs.shape == (micro_batch_size, 3)
            real = batch.weights[:, 0] == 1
            assert torch.equal(batch.weights, real[:, None].float().expand(-1, 3))
            seen += batch.inputs[real, 0].tolist()
    assert sorted(seen) == list(wanted)


def test_samples_of_several_sets_are_taken_in_whole_rounds():
    samples = Numbered(40)
    samples.turns = 4
    found = spread(samples, 12)
    assert found.tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 24, 25, 26, 27]
    assert np.bincount(spread(samples, 20) % 4).tolist() == [5] * 4  # every second of them would be two sets
    assert spread(samples, 10).tolist() == found.tolist()[:10]


def test_steps_on_a_device_are_those_of_the_loader_whether_fetched_ahead_or_not():
    loader = StepLoader(Numbered(50), 5, 12, 4)
    steps_there, wanted, reads = StepsOnDevice(loader, torch.device("cpu")), steps(3, micro_batch_size=4), []
    with mock.patch.object(Numbered, "drawn", lambda self, index, number: reads.append(number) or self[index]):
        for step in wanted[:2]:
            steps_there.fetch()
            steps_there.fetch()
            assert len(reads) % 12 == 0
            assert numbers(next(steps_there)) == numbers(step)
        assert numbers(next(steps_there)) == numbers(wanted[2]) and len(reads) == 36
    steps_there.close()


def test_what_cannot_be_read_is_said_when_its_step_comes():
    class Broken(Numbered):
        def drawn(self, index, number):
            if number >= 12:
                raise DataError(f"sample {number}")
            return self[index]

    steps_there = StepsOnDevice(StepLoader(Broken(50), 5, 12, 4), torch.device("cpu"))
    next(steps_there)
    steps_there.fetch()
    with pytest.raises(DataError, match="sample 12"):
        next(steps_there)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_gpu_copies_from_pinned_memory_while_the_host_goes_on(num_workers, monkeypatch):
    pinned, copied = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: copied.append(non_blocking) or self)
    for device, expected in (("cpu", 0), ("cuda", 9)):
        steps_there = StepsOnDevice(StepLoader(Numbered(50), 5, 12, 4, num_workers=num_workers), torch.device(device))
        pinned.clear()
        batches = next(steps_there)
        steps_there.close()
        assert sum(any(each is one for one in pinned) for batch in batches for each in batch) == expected
    assert copied == [True] * 18
