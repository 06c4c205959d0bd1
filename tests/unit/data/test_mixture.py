"""Several sets as one: shares to within a few samples at any point, epochs of their own, an order without memory."""

import itertools
from collections import Counter

import numpy as np
import pytest

from nt_dist.data.loader import Chosen, EvaluationBatches, StepLoader
from nt_dist.data.mixture import Mixture, each_part, numbered
from nt_dist.data.order import samples_at, turns_at, turns_before
from tests.unit.data.test_loader import Numbered, numbers

SHARES = {"a": 0.5, "b": 0.125, "c": 0.375}


def mixture():
    """Sets of 20, 3 and 40 samples: number 20 is the second set's first."""
    return Mixture({"a": Numbered(20), "b": Numbered(3), "c": Numbered(40)}, SHARES)


@pytest.mark.parametrize(
    "shares", [[1.0], [0.5, 0.5], [0.5, 0.125, 0.375], [0.001, 0.299, 0.7], [0.97, 1e-6, 0.029999]]
)
def test_each_set_has_its_share_of_any_run_of_samples(shares):
    sets, turns = turns_at(shares, np.arange(4000))
    for number, share in enumerate(shares):
        own = turns[sets == number]
        assert own.tolist() == list(range(len(own)))  # each turn once, in order
        counts = np.cumsum(sets == number)
        assert np.abs(counts - share * np.arange(1, 4001)).max() < 2
    for end in (0, 1, 17, 4000):
        assert turns_before(shares, end) == [int((sets[:end] == number).sum()) for number in range(len(shares))]


def test_turns_are_exact_far_out_and_alone():
    shares, far = [0.3, 0.1, 0.6], 2**45 + 12345
    sets, turns = turns_at(shares, far + np.arange(200))
    before = turns_before(shares, far)
    assert sum(before) == far
    for number in range(3):
        own = turns[sets == number]
        assert own.tolist() == list(range(before[number], before[number] + len(own)))
    alone = [turns_at(shares, np.array([far + k])) for k in range(200)]
    assert [(int(s[0]), int(t[0])) for s, t in alone] == list(zip(sets.tolist(), turns.tolist(), strict=True))


def test_a_set_goes_through_epochs_of_its_own():
    mixed = mixture()
    indices = mixed.at(5, np.arange(160))
    places = [mixed.place(index) for index in indices.tolist()]
    assert Counter(name for name, _ in places) == {"a": 80, "b": 20, "c": 60} == mixed.drawn_before(160)
    for name, part in mixed.parts.items():
        own, size = [place for each, place in places if each == name], len(part)
        for epoch in range(len(own) // size):  # each sample once
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert numbered(mixed, 5, np.arange(160)).tolist() == indices.tolist() != mixed.at(6, np.arange(160)).tolist()
    assert numbered(Numbered(50), 5, np.arange(12)).tolist() == samples_at(5, 50, np.arange(12)).tolist()
    alike = Mixture({"a": Numbered(9), "b": Numbered(9)}, {"a": 0.5, "b": 0.5}).at(0, np.arange(18))
    assert [index for index in alike if index < 9] != [index - 9 for index in alike if index >= 9]


@pytest.mark.parametrize(("micro_batch_size", "degree", "start"), [(2, 2, 0), (4, 3, 24), (1, 4, 48)])
def test_every_layout_and_every_start_trains_on_the_same_mixture(micro_batch_size, degree, start):
    whole = list(itertools.islice(StepLoader(mixture(), 5, 12, 12), 6))
    ranks = [
        StepLoader(mixture(), 5, 12, micro_batch_size, rank, degree, start, num_workers=2) for rank in range(degree)
    ]
    steps = [list(itertools.islice(iter(rank), 2)) for rank in ranks]
    for step in range(2):
        together = list(itertools.chain(*(numbers(rank[step]) for rank in steps)))
        assert together == numbers(whole[start // 12 + step])


def test_samples_are_those_of_the_sets():
    mixed = mixture()
    assert [int(mixed[index].inputs[0]) for index in (0, 19, 20, 22, 23, 62)] == [0, 19, 0, 2, 0, 39]
    assert int(mixed.drawn(21, 7).inputs[0]) == 1 and mixed.blank().weights.sum() == 0
    for index in (-1, 63):
        with pytest.raises(IndexError):
            mixed[index]
    assert len(each_part(mixed, lambda part: Numbered(len(part) - 1))) == 60
    assert len(each_part(Numbered(7), lambda part: Numbered(len(part) - 1))) == 6


def test_an_evaluation_takes_as_many_of_each_set_and_weighs_them_by_shares():
    chosen = Chosen(mixture(), 24)  # 8 of each, and the 3 that b has
    assert chosen.numbers == [0, 2, 5, 7, 10, 12, 15, 17, 20, 21, 22, 23, 28, 33, 38, 43, 48, 53, 58]
    weights = np.array([chosen[place].weights[0] for place in range(len(chosen))], dtype=np.float64)
    for name, own in zip("abc", (slice(8), slice(8, 11), slice(11, 19)), strict=True):
        assert weights[own].sum() / weights.sum() == pytest.approx(SHARES[name])
        assert weights[own].sum() == pytest.approx(8 / 8 * SHARES[name] * 19)
    batches = EvaluationBatches(mixture(), 4, 24)
    assert sum(float(batch.weights[:, 0].sum()) for batch in batches) == pytest.approx(19)
    for name, (own, factor) in batches.by_source().items():
        real = [row for batch in own for row in batch.weights[:, 0].tolist() if row]
        assert set(real) == {1.0} and factor == pytest.approx(SHARES[name] * 19 / len(real))
    assert EvaluationBatches(Numbered(9), 4, 0).by_source() == {}
    assert len(Chosen(mixture(), 0)) == 63
