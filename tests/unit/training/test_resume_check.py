"""What makes two runs the same, and a run that fails while it is checked."""

import sys

import pytest

from nt_dist.errors import RunError
from nt_dist.training.resume_check import check_resume, differing_lines


def _line(step, **figures):
    return {"step": step, "loss": 4.0, "tokens_per_second": 100.0, **figures}


def test_only_what_is_measured_may_differ():
    expected = [_line(1), _line(2), {"step": 2, "eval": {"ppl_trails": [60.0]}}]
    assert differing_lines(expected, [_line(1, tokens_per_second=7.0), *expected[1:]]) == []
    assert differing_lines(expected, [_line(1), _line(2, loss=4.000001), expected[2]]) == [
        "step 2: loss is 4.000001, not 4.0"
    ]
    assert differing_lines(expected, [*expected[:2], {"step": 2, "eval": {"ppl_trails": [60.5]}}]) != []
    assert differing_lines(expected, expected[:2]) == ["2 lines of metrics, not 3"]
    assert differing_lines(expected, [_line(1, grad_norm=1.0), *expected[1:]]) == ["step 1: grad_norm is 1.0, not None"]


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("print('no such file'); raise SystemExit(2)", "(?s)whole: a rank left with exit code 2.*no such file"),
        ("", "killed: it ended at step 0 before it could be killed"),
    ],
)
def test_a_run_that_fails_is_shown(tmp_path, program, says):
    with pytest.raises(RunError, match=says):
        check_resume([sys.executable, "-c", program], tmp_path, 1, 2)
