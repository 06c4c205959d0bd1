"""When topologies change and how much."""

import pytest

from nt_dist.sparsity.rules import drop_fraction_at, is_update_step


def test_updates_come_every_so_many_steps_and_not_after_the_last():
    steps = [step for step in range(1, 201) if is_update_step(step, 50, 200, 1.0)]
    assert steps == [50, 100, 150]


def test_no_updates_when_static_or_after_the_stop():
    assert not any(is_update_step(step, 0, 200, 1.0) for step in range(1, 201))
    assert [step for step in range(1, 201) if is_update_step(step, 50, 200, 0.5)] == [50, 100]


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.2525, 0.005), ("linear", 0.2525, 0.005), ("constant", 0.5, 0.5)]
)
def test_drop_fraction(schedule, middle, end):
    assert drop_fraction_at(500, 0.5, schedule, 1000, 1.0) == pytest.approx(middle)
    assert drop_fraction_at(1000, 0.5, schedule, 1000, 1.0) == pytest.approx(end)
    assert drop_fraction_at(1, 0.5, schedule, 1000, 1.0) == pytest.approx(0.5, rel=3e-3)


def test_the_schedule_ends_where_the_updates_do():
    assert drop_fraction_at(500, 0.5, "cosine", 1000, 0.5) == pytest.approx(0.005)
    assert drop_fraction_at(250, 0.5, "cosine", 1000, 0.25) == pytest.approx(0.005)


def test_cosine_is_slower_than_linear_at_first():
    assert drop_fraction_at(100, 0.5, "cosine", 1000, 1.0) > drop_fraction_at(100, 0.5, "linear", 1000, 1.0)
