"""The order of samples: a permutation an epoch, a pure function, nothing else."""

import numpy as np
import pytest

from nt_dist.data.order import first_of_step, samples_at

EXPECTED = [7, 8, 2, 6, 9, 3, 0, 4, 5, 1]
EXPECTED_LARGE = 498687520898


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_each_epoch_is_a_permutation(count):
    for epoch in range(3):
        order = samples_at(7, count, np.arange(epoch * count, (epoch + 1) * count))
        assert sorted(order) == list(range(count))


def test_epochs_and_seeds_differ():
    first, second = (samples_at(7, 500, np.arange(500) + 500 * epoch) for epoch in (0, 1))
    other = samples_at(8, 500, np.arange(500))
    for pair in ((first, second), (first, other), (second, other)):
        assert (pair[0] == pair[1]).mean() < 0.03


def test_a_number_alone_gives_what_it_gives_among_others():
    order = samples_at(3, 101, np.arange(1000))
    for number in (0, 57, 101, 999):
        assert samples_at(3, 101, np.array([number])).item() == order[number]


def test_the_order_stays_what_it_was():
    """A resume under a newer version must go on in the same order."""
    assert samples_at(0, 10, np.arange(10)).tolist() == EXPECTED
    assert samples_at(2**63 - 1, 2**40, np.array([2**50])).item() == EXPECTED_LARGE


def test_neighbours_are_spread():
    """Steps from one sample to the next look like those of a random permutation: a third of the range on average."""
    count = 4096
    order = samples_at(1, count, np.arange(count))
    assert abs(np.abs(np.diff(order)).mean() / count - 1 / 3) < 0.02
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.05


def test_a_step_begins_behind_what_is_left_out():
    left_out = [(8, 16), (16, 24), (40, 48)]
    assert [first_of_step(start, 8, left_out) for start in (0, 8, 16, 24, 32, 40)] == [0, 24, 24, 24, 32, 48]
    assert first_of_step(4, 8, left_out) == 24, "no step may reach into it"
