"""The progress bar: a bar on a terminal, few lines elsewhere, and a remaining time one can believe."""

import io
import logging

import pytest

from nt_dist.messages import BarHandler, ProgressBar, format_seconds


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal; ``screen`` is what its last line would show."""

    def isatty(self):
        return True

    def screen(self):
        lines = self.getvalue().split("\n")
        shown = ""
        for part in lines[-1].split("\r"):
            shown = part + shown[len(part) :]
        return lines[:-1], shown


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "20")


def _run(bar, clock, steps, seconds, text="loss 4.20"):
    for step in steps:
        clock.now += seconds
        bar.update(step, text)


def test_remaining_time_follows_the_pace():
    clock = Clock()
    bar = ProgressBar(100, stream=io.StringIO(), clock=clock)
    assert bar.remaining_seconds() is None
    _run(bar, clock, range(1, 11), 2.0)
    assert bar.remaining_seconds() == pytest.approx(90 * 2.0)
    _run(bar, clock, range(11, 91), 10.0)  # slower now: after some minutes only this pace counts
    assert bar.remaining_seconds() == pytest.approx(10 * 10.0, rel=0.02)


def test_one_long_pause_does_not_double_the_remaining_time():
    clock = Clock()
    bar = ProgressBar(10_000, stream=io.StringIO(), clock=clock)
    _run(bar, clock, range(1, 601), 0.1)
    clock.now += 6.0  # an evaluation
    bar.update(601)
    assert bar.remaining_seconds() == pytest.approx((10_000 - 601) * 0.11, rel=0.03)


def test_evaluations_count_in_the_remaining_time_by_their_share():
    clock = Clock()
    bar = ProgressBar(1000, stream=io.StringIO(), clock=clock)
    for step in range(1, 302):
        clock.now += 0.1 + 20.0 * (step % 100 == 1 and step > 1)  # an evaluation stands behind each 100th step
        bar.update(step, seconds=0.1)
    assert bar.remaining_seconds() == pytest.approx((1000 - 301) * (0.1 + 0.2), rel=0.01)


def test_a_resumed_run_counts_only_its_own_steps():
    clock = Clock()
    bar = ProgressBar(100, start=90, stream=io.StringIO(), clock=clock)
    _run(bar, clock, [91, 92], 3.0)
    assert bar.remaining_seconds() == pytest.approx(8 * 3.0)


def test_plain_lines_are_rate_limited_and_end_with_the_last_step():
    clock, stream = Clock(), io.StringIO()
    bar = ProgressBar(1000, stream=stream, clock=clock)
    _run(bar, clock, range(1, 1001), 0.125)
    bar.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 14  # 125 s with a line at most every 10 s, and the last step
    assert "\r" not in stream.getvalue()
    assert lines[0].startswith("step 1/1000 (0%)  loss 4.20")
    assert lines[-1].startswith("step 1000/1000 (100%)")
    assert lines[6] == "step 481/1000 (48%)  loss 4.20  1:05 left"


def test_a_week_in_a_batch_system_leaves_less_than_a_thousand_lines():
    clock, stream = Clock(), io.StringIO()
    bar = ProgressBar(604_800, stream=stream, clock=clock)
    _run(bar, clock, range(1, 604_801), 1.0)
    assert len(stream.getvalue().splitlines()) < 1000


def test_a_terminal_shows_one_bar_in_place(wide):
    clock, stream = Clock(), Terminal()
    bar = ProgressBar(100, stream=stream, clock=clock)
    _run(bar, clock, range(1, 51), 1.0)
    above, shown = stream.screen()
    assert above == []
    assert len(shown) < 100
    assert shown.count("#") == shown.count("-") > 5
    assert "50/100  50%  0:50 left  loss 4.20" in shown


def test_a_shorter_bar_leaves_nothing_of_the_longer_one(wide):
    clock, stream = Clock(), Terminal()
    bar = ProgressBar(100, stream=stream, clock=clock)
    _run(bar, clock, [1], 100.0, "a long text that goes away")
    _run(bar, clock, [2], 1.0, "x")
    assert "goes away" not in stream.screen()[1]


def test_a_line_stands_above_the_bar(wide):
    clock, stream = Clock(), Terminal()
    bar = ProgressBar(100, stream=stream, clock=clock)
    _run(bar, clock, [1], 1.0)
    bar.write("a checkpoint was saved\n")
    _run(bar, clock, [2], 0.001)  # redrawn at once although little time has passed
    above, shown = stream.screen()
    assert [line.split("\r")[-1].strip() for line in above] == ["a checkpoint was saved"]
    assert "2/100" in shown
    bar.close()
    assert stream.getvalue().endswith("\n")


def test_a_narrow_terminal_is_never_overrun(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    clock, stream = Clock(), Terminal()
    bar = ProgressBar(100, stream=stream, clock=clock)
    _run(bar, clock, range(1, 30), 1.0, "loss 4.2000 and a long text")
    assert max(len(part.rstrip()) for part in stream.getvalue().split("\r")) < 20


def test_a_titled_bar_says_shares_alone_and_its_last_state_when_it_is_closed(wide):
    for stream, lines in ((io.StringIO(), 5), (Terminal(), 1)):
        clock = Clock()
        with ProgressBar(80, title="reading", counts=False, stream=stream, clock=clock) as bar:
            for second in range(1, 41):
                clock.now += 1.0
                bar.update(second, f"{second} documents")
                if second == 39:
                    clock.now -= 0.99
        shown = stream.getvalue()
        assert shown.endswith("\n") and shown.count("\n") == lines, shown
        assert shown.startswith("reading (1%)  1 documents  1:19 left\n" if lines > 1 else "\rreading [----")
        assert "40 documents" in shown.splitlines()[-1] and "/80" not in shown


def test_without_a_total_there_is_no_share(wide):
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        with ProgressBar(0, title="reading", counts=False, stream=stream, clock=clock) as bar:
            _run(bar, clock, range(1, 41), 1.0, "many documents")
        assert " ".join(stream.getvalue().splitlines()[-1].split()) == "reading many documents in 0:40"
        assert "%" not in stream.getvalue() and "left" not in stream.getvalue()


def test_nothing_done_shows_nothing():
    stream = io.StringIO()
    with ProgressBar(10, stream=stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (65, "1:05"), (3599, "59:59"), (7384, "2:03:04"), (273_900, "3 d 04:05")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_a_message_carries_no_escape_sequence_of_what_it_names(capsys):
    record = logging.LogRecord("nt_dist", logging.WARNING, "", 0, "%s is damaged", ("a\x1b[2J\nb",), None)
    assert BarHandler().format(record) == "warning: a\\x1b[2J\nb is damaged"
