"""What the main rank shows and writes of a run: also where the disk takes no more, and of a family without texts."""

import errno
import io
import logging
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nt_dist.config.family import Headline
from nt_dist.evaluation.topology import Overlap
from nt_dist.families import DEFAULT
from nt_dist.files import Journal
from nt_dist.messages import LOGGER, BarHandler, ProgressBar
from nt_dist.training.metrics_log import read_metrics
from nt_dist.training.reporter import Reporter

FIGURES = {"ppl_trails": [1234.5, 12.0], "ppl_ensemble_prob": 11.0, "ppl_ensemble_logit": 11.5, "disagreement": 0.25}
EVALUATION = {"step": 7, "eval": {**FIGURES, "tokens": 64}}


class Pictures:
    """As much of a family of image models as a reporter asks for."""

    def headline(self, figures):
        return Headline("accuracy", figures["right"], figures["right_prob"], 0.8, False, ".1%", "image")


def test_a_full_disk_ends_nothing_and_what_was_refused_follows(tmp_path, monkeypatch, caplog):
    def full(journal, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    reporter = Reporter(tmp_path, DEFAULT, 0, 10, {}, [BarHandler()])
    logged = {"step": 1, "loss": 2.0, "loss_per_trail": [1.5, 2.5]}
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_write", full)
        reporter.logged(logged)
        reporter.noted({"step": 3, "bad_step": "spike"})
        assert reporter.lines_on_disk() == 0  # what a checkpoint counts on
    assert caplog.text.count("metrics.jsonl: cannot be written: No space left on device") == 1
    reporter.evaluated(EVALUATION, None)
    assert reporter.lines_on_disk() == 3
    reporter.close()
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3, 7]
    events = EventAccumulator(str(tmp_path / "tensorboard" / tmp_path.name))
    events.Reload()
    assert [each.value for each in events.Scalars("training/loss") + events.Scalars("validation/disagreement")] == [
        2,
        0.25,
    ]


def test_a_folder_of_curves_that_cannot_be_made_ends_nothing(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    reporter = Reporter(tmp_path, DEFAULT, 0, 10, {}, [BarHandler()])
    reporter.evaluated(EVALUATION, None)
    reporter.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1 and caplog.text.count("cannot be written") == 1


def _evaluated(folder, family, record, capsys, caplog, monkeypatch):
    """What is said of an evaluation, and what TensorBoard was told of it."""
    caplog.set_level(logging.INFO, LOGGER.name)
    handler = BarHandler()
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    folder.mkdir()
    reporter = Reporter(folder, family, 0, 10, {}, [handler])
    reporter.evaluated(record, Overlap(0.4, 1 / 3))
    reporter.close()
    (line,) = read_metrics(folder / "metrics.jsonl")
    assert handler.bar is None and {key: line[key] for key in record} == record
    assert abs(line["time"] - time.time()) < 600
    curves = {}
    for line in ("", "trail_1", "trail_2", "ensemble"):
        events = EventAccumulator(str(folder / "tensorboard" / folder.name / line))
        events.Reload()
        curves |= {f"{line} {name}".strip(): events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    return capsys.readouterr().err.strip(), {name: pytest.approx(value) for name, value in curves.items()}


def test_an_evaluation_is_told_by_the_familys_headline(tmp_path, capsys, caplog, monkeypatch):
    said, _ = _evaluated(tmp_path / "text", DEFAULT, EVALUATION, capsys, caplog, monkeypatch)
    trails = "1,234.50, 12.00; of the ensemble 11.00"
    assert said == f"step 7: validation perplexity of the trails {trails}; disagreement 25.0 %"
    record = {"step": 7, "eval": {"right": [0.5, 0.75], "right_prob": 0.8, "disagreement": 0.1, "images": 64}}
    said, curves = _evaluated(tmp_path / "images", Pictures(), record, capsys, caplog, monkeypatch)
    assert said == "step 7: validation accuracy of the trails 50.0%, 75.0%; of the ensemble 80.0%; disagreement 10.0 %"
    trails = {
        f"{line} trails/validation": each for line, each in (("trail_1", 0.5), ("trail_2", 0.75), ("ensemble", 0.8))
    }
    overlap = {"topology/overlap": 0.4, "topology/overlap_by_chance": 1 / 3}
    assert curves == {**trails, **overlap, "validation/right_prob": 0.8, "validation/disagreement": 0.1}


def test_warnings_and_other_ranks_are_told_apart(capsys):
    for rank, said in ((0, "warning: x 1"), (3, "[rank 3] warning: x 1")):
        handler = BarHandler(rank)
        handler.handle(logging.LogRecord("nt_dist", logging.WARNING, "", 1, "x %d", (1,), None))
        assert capsys.readouterr().err == f"{said}\n"
    BarHandler().handle(logging.LogRecord("nt_dist", logging.INFO, "", 1, "as it is", (), None))
    assert capsys.readouterr().err == "as it is\n"


def test_a_message_goes_through_the_bar_as_long_as_there_is_one(capsys):
    handler, stream = BarHandler(), io.StringIO()
    record = logging.LogRecord("nt_dist", logging.INFO, "", 1, "a message", (), None)
    handler.bar = ProgressBar(10, stream=stream)
    handler.handle(record)
    assert (stream.getvalue(), capsys.readouterr().err) == ("a message\n", "")
    handler.bar = None
    handler.handle(record)
    assert (stream.getvalue(), capsys.readouterr().err) == ("a message\n", "a message\n")
