"""Drop and regrow rules, each against a plain definition of it."""

import pytest
import torch

from nt_dist.sparsity import rules
from nt_dist.sparsity.rules import choose_kept
from nt_dist.sparsity.streams import stream_keys


def choose_grown(rule, gradient, closed, count, keys, dropped=None):
    return rules.choose_grown(
        rule, gradient, closed, torch.zeros_like(closed) if dropped is None else dropped, count, keys
    )


KEYS = stream_keys([(0, "drop", row) for row in range(3)])[:, None]


def positions_of(values):
    return torch.arange(values.shape[1]).expand_as(values)


def kept_by(rule, values, count, keys=KEYS, temperature=3.0):
    return choose_kept(rule, values, count, keys[: len(values)], positions_of(values), temperature)


def test_magnitude_keeps_the_largest():
    values = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    kept = kept_by("magnitude", values, 25)
    for row, each in zip(kept, values.abs(), strict=True):
        assert row.sum() == 25 and each[row].min() > each[~row].max()


def test_set_drops_next_to_zero_on_both_sides_in_proportion():
    values = torch.tensor([[-4.0, -3.0, -2.0, -1.0, 0.1, 0.2, 0.3, 0.4]])
    assert kept_by("set", values, 4).tolist() == [[True, True, False, False, False, False, True, True]]


@pytest.mark.parametrize("rule", ["magnitude", "soft_magnitude", "set"])
def test_zeros_go_first_and_fill_up_where_there_is_nothing_else(rule):
    values = torch.tensor([[0.0, 1e-20, 0.0, -1e-20, 5.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    kept = kept_by(rule, values, 3)
    assert kept[0].tolist() == [False, True, False, True, True]
    assert kept[1].sum() == 3 and kept[1, 4]


def test_soft_magnitude_keeps_with_probability_proportional_to_a_power():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    keys = stream_keys([(0, trial) for trial in range(20_000)])[:, None]
    kept = kept_by("soft_magnitude", weights.expand(20_000, -1).contiguous(), 1, keys, temperature=2.0)
    expected = weights**2 / (weights**2).sum()
    assert torch.allclose(kept.float().mean(0), expected, atol=0.012)


def test_soft_magnitude_depends_on_the_stream():
    values = torch.ones(3, 64)
    kept = kept_by("soft_magnitude", values, 32)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept, kept_by("soft_magnitude", values, 32))


def test_gradient_grows_the_largest_open_entries():
    gradient = torch.tensor([[1.0, -5.0, 3.0, -2.0, 4.0]])
    closed = torch.tensor([[False, True, False, False, False]])
    assert sorted(choose_grown("gradient", gradient, closed, 2, KEYS[:1])[0].tolist()) == [2, 4]


def test_entries_without_gradient_are_chosen_by_the_stream_after_all_others():
    gradient = torch.zeros(2, 100)
    gradient[:, 70] = 1e-30
    closed = torch.zeros(2, 100, dtype=torch.bool)
    closed[:, :50] = True
    grown = choose_grown("gradient", gradient, closed, 20, KEYS[:2])
    for row in grown.tolist():
        assert 70 in row and min(row) >= 50 and len(set(row)) == 20
        assert sorted(row) != list(range(50, 70)) and sorted(row) != list(range(80, 100))
    assert set(grown[0].tolist()) != set(grown[1].tolist())


def test_of_entries_without_gradient_the_dropped_ones_come_back_first():
    closed = torch.zeros(2, 100, dtype=torch.bool)
    closed[:, :20] = True
    dropped = torch.zeros(2, 100, dtype=torch.bool)
    dropped[:, 40:60] = True
    gradient = torch.zeros(2, 100)
    gradient[:, [30, 45]] = 1e-30
    few = choose_grown("gradient", gradient, closed, 12, KEYS[:2], dropped)
    for row in few.tolist():
        assert {30, 45} < set(row) <= {30, *range(40, 60)} and len(set(row)) == 12
    assert set(few[0].tolist()) != set(few[1].tolist())
    for row in choose_grown("gradient", gradient, closed, 30, KEYS[:2], dropped).tolist():
        assert {30, *range(40, 60)} < set(row) and min(row) >= 20 and len(set(row)) == 30


@pytest.mark.parametrize("rule", ["gradient", "random"])
def test_all_open_entries_can_be_chosen_and_no_closed_one_ever(rule):
    closed = torch.arange(30).expand(3, -1) % 3 == 0
    grown = choose_grown(rule, torch.zeros(3, 30), closed, 20, KEYS)
    for row in grown.tolist():
        assert sorted(row) == [each for each in range(30) if each % 3]


def test_random_is_uniform_over_open_entries():
    keys = stream_keys([(0, trial) for trial in range(4000)])[:, None]
    closed = torch.tensor([False, True, False, False, False]).expand(4000, -1)
    share = torch.bincount(choose_grown("random", None, closed, 2, keys).flatten(), minlength=5) / 4000
    assert torch.allclose(share, torch.tensor([0.5, 0.0, 0.5, 0.5, 0.5]), atol=0.03)
