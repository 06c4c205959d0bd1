"""metrics.jsonl: whole lines, none twice after a resume, none half."""

import json
import os

import pytest

from nt_dist.errors import RunError
from nt_dist.training.metrics_log import (
    MetricsLog,
    check_continued,
    last_evaluation,
    put_aside,
    read_metrics,
    training_seconds,
)

PACE = '{{"step": 2, "tokens": 9, "tokens_per_second": {}}}'


def _write(path, steps, last_step=0):
    log = MetricsLog(path, last_step)
    for step in steps:
        log.write({"step": step, "loss": step / 3})
    log.close()


def test_lines_are_read_back_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20])
    assert read_metrics(path) == [{"step": 10, "loss": 10 / 3}, {"step": 20, "loss": 20 / 3}]


def test_a_line_is_on_file_before_the_log_is_closed(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
    log.close()


def test_resume_cuts_off_later_lines_and_keeps_the_checkpoints_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20, 30, 40])
    _write(path, [30], last_step=20)
    assert [record["step"] for record in read_metrics(path)] == [10, 20, 30]


def test_a_start_from_nothing_begins_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20])
    _write(path, [10])
    assert [record["step"] for record in read_metrics(path)] == [10]


def test_a_half_written_last_line_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10, "loss": 1.5}\n{"step": 20, "los\xc3')
    assert [record["step"] for record in read_metrics(path)] == [10]
    _write(path, [20], last_step=10)
    assert path.read_text().splitlines() == ['{"step": 10, "loss": 1.5}', '{"step": 20, "loss": 6.666666666666667}']


def test_lines_are_counted_over_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20, 30])
    log = MetricsLog(path, 20)
    log.write({"step": 30})
    assert log.settle() == 3
    log.close()


def test_a_file_that_lost_lines_is_refused_and_one_that_is_gone_begins_anew(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 30, 40])
    check_continued(path, 30, 2)
    with pytest.raises(RunError, match=r"has 2 of the 3 lines up to step 30; put back a whole one, or move it away"):
        check_continued(path, 30, 3)
    path.unlink()
    check_continued(path, 30, 3)
    assert "is not there: it begins anew behind step 30" in caplog.text


def test_a_file_of_another_run_is_put_aside_whole_each_time(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    put_aside(path)  # there is none
    for step in (1, 2):
        _write(path, [step])
        put_aside(path)
        assert read_metrics(tmp_path / f"metrics.jsonl.{step}")[0]["step"] == step and not path.exists()
    assert "its metrics are kept as metrics.jsonl.2" in caplog.text


def test_a_fifo_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match="metrics.jsonl: cannot be read: it is not a plain file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_lines_in_another_order_are_cut_by_one_rename_of_a_finished_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    _write(path, [20, 10, 30])
    before = path.read_bytes()

    def fail(source, target):
        assert [json.loads(line)["step"] for line in source.read_text().splitlines()] == [10]
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RunError, match="disk is gone"):
        MetricsLog(path, 10)
    assert path.read_bytes() == before
    monkeypatch.undo()
    _write(path, [15], last_step=10)
    assert [record["step"] for record in read_metrics(path)] == [10, 15]


def test_lines_in_order_are_cut_where_they_stand(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    _write(path, [10, 20, 30])
    kept = path.read_bytes().split(b"\n")[0] + b"\n"
    monkeypatch.setattr(os, "replace", lambda source, target: pytest.fail("another file needs room on the disk"))
    MetricsLog(path, 10)
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "line",
    ["nonsense", '{"loss": 1}', "[1, 2]", '{"step": "ten"}', "[" * 200_000, PACE.format("[]"), PACE.format(10**40)],
)
def test_a_foreign_line_is_named_and_nothing_is_cut(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(RunError, match="line 2"):
        MetricsLog(path, 1)
    assert path.read_bytes() == before


def test_a_line_without_a_pace_takes_no_time():
    records = [{"step": step, "tokens": 6, "tokens_per_second": pace} for step, pace in enumerate((2.0, None, 0.0))]
    assert training_seconds([*records, {"step": 3, "tokens_per_second": 1.0}], 9) == 3.0


def test_numbers_that_json_has_not_become_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1, "loss": float("nan"), "loss_per_trail": [1.0, float("inf")], "eval": {"ppl": -float("inf")}})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "step": 1,
        "loss": None,
        "loss_per_trail": [1.0, None],
        "eval": {"ppl": None},
    }


def test_last_evaluation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_evaluation(path) is None
    path.write_text('{"step": 1, "eval": {"tokens": 1}}\n{"step": 2, "eval": {"tokens": 2}}\n{"step": 3}\n')
    assert last_evaluation(path) == {"step": 2, "eval": {"tokens": 2}}


def test_the_time_of_steps_is_their_tokens_by_their_pace():
    pace = ((10, 1000, 100.0), (20, 3000, 400.0), (30, 3500, 50.0))
    records = [{"step": step, "tokens": tokens, "tokens_per_second": each} for step, tokens, each in pace]
    records.insert(2, {"step": 20, "eval": {"tokens": 64}})
    assert [training_seconds(records, last) for last in (5, 10, 25, 30)] == [0.0, 10.0, 15.0, 25.0]
