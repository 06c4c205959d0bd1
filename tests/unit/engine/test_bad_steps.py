"""The spread that a spike is told by, and the account of bad steps."""

import json

import pytest

from nt_dist.engine.bad_steps import BadStep, BadSteps, StepVerdict
from nt_dist.engine.step_guard import RecentValues
from nt_dist.errors import RunError


def _spread(figures, floor=0.01):
    spread = RecentValues(len(figures), floor)
    for figure in figures:
        spread.append(figure)
    return spread


def test_excess_is_in_standard_deviations_above_the_median():
    figures = [1.0, 2.0, 3.0, 4.0, 5.0]  # median 3, deviations 0, 1, 1, 2, 2: MAD 1
    assert _spread(figures).excess(3.0 + 2 * 1.4826) == pytest.approx(2.0)
    assert _spread(figures).excess(1.0) < 0
    outliers = [1.0, 2.0, 3.0, 4.0, 1e9]
    assert _spread(outliers).excess(9.0) == _spread(figures).excess(9.0)


def test_a_series_that_hardly_moves_makes_no_spike_of_a_ripple():
    assert _spread([2.0] * 9, floor=0.1).excess(2.3) == pytest.approx(3.0)


def test_nothing_is_judged_before_the_window_is_full_and_the_oldest_leave_it():
    spread = RecentValues(3, 0.1)
    for figure in (0.0, 0.0):
        spread.append(figure)
    assert spread.excess(1e9) == 0.0
    for figure in (5.0, 5.0):
        spread.append(figure)
    assert list(spread) == [0.0, 5.0, 5.0] and spread.excess(6.0) == pytest.approx(10.0)
    other = RecentValues(2, 0.1)
    other.restore(list(spread))
    assert list(other) == [5.0, 5.0]
    none = RecentValues(0, 0.1)
    none.restore(list(spread))
    assert not none and none.excess(1e9) == 0.0


def _bad(step, done="skipped", first=None):
    first = 8 * step if first is None else first
    return BadStep(step, StepVerdict.LOSS_SPIKE.words, 9.5, 1.25, (first, first + 8), done)


def test_too_many_in_a_row_end_the_run_with_a_report():
    account = BadSteps(2)
    account.add(_bad(3), StepVerdict.LOSS_SPIKE)
    account.applied(4)
    for step in (5, 6):
        account.add(_bad(step), StepVerdict.NORM_NOT_FINITE)
    account.add(_bad(7, "seen"), StepVerdict.NORM_SPIKE)  # taken: not counted in the row
    with pytest.raises(RunError, match="3 bad steps in a row") as caught:
        account.add(_bad(8), StepVerdict.LOSS_NOT_FINITE)
    report = str(caught.value).splitlines()
    assert "train.max_bad_steps = 2" in report[0] and [line[:7] for line in report[1:]] == [
        "step 5:",
        "step 6:",
        "step 8:",
    ]
    assert "loss 9.5, gradient norm 1.25, samples 64 to 71" in report[3]
    assert account.counts == {"steps_not_finite": 3, "steps_spiked": 2, "rollbacks": 0}


def test_steps_repeated_after_going_back_do_not_end_the_row():
    account = BadSteps(1)
    account.add(_bad(9, "rolled back"), StepVerdict.LOSS_SPIKE)
    for step in (7, 8):
        account.applied(step)
    with pytest.raises(RunError):
        account.add(_bad(9, "rolled back", first=80), StepVerdict.LOSS_SPIKE)
    account.applied(9)
    account.add(_bad(10), StepVerdict.LOSS_SPIKE)


def test_the_account_goes_through_a_checkpoint_and_lines_that_were_cut_off_come_again():
    account = BadSteps(5)
    account.add(_bad(2), StepVerdict.LOSS_NOT_FINITE)
    account.add(_bad(7, "rolled back", first=64), StepVerdict.LOSS_SPIKE)
    assert [(line["step"], line["bad_step"]["step"]) for line in account.lines_cut_off(4)] == [(5, 7)]
    account.add(_bad(6, "rolled back", first=40), StepVerdict.LOSS_SPIKE)
    assert [(line["step"], line["bad_step"]["step"]) for line in account.lines_cut_off(4)] == [(5, 7), (5, 6)]
    assert account.left_out == [(16, 24), (40, 48), (64, 72)]
    state = json.loads(json.dumps(account.state()))
    other = BadSteps(5)
    other.restore(state)
    assert other.left_out == account.left_out and json.loads(json.dumps(other.state())) == state
    other.restore({})
    assert other.left_out == [] and not any(other.counts.values())
