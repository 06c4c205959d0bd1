"""Progress of preparing: a bar on a terminal, few plain lines elsewhere."""

import io

import pytest

from nt_dist.text import progress
from nt_dist.text.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(stream, clock, total):
    with Progress("reading", total, stream) as shown:
        for second in range(1, 41):
            clock[0] = second
            shown.update(second, f"{second} documents")
    return stream.getvalue()


def test_a_file_gets_a_line_every_ten_seconds(clock):
    lines = run(io.StringIO(), clock, 80).splitlines()
    assert lines[0] == "reading:  12%, 10 documents in 0:10, 1:10 left"
    assert lines[-1] == "reading:  50%, 40 documents in 0:40, 0:40 left"
    assert len(lines) == 5


def test_a_terminal_gets_one_line_drawn_again_and_again(clock):
    shown = run(Terminal(), clock, 40)
    assert shown.count("\n") == 1 and shown.endswith("\n")
    assert "[###############...............]  50%, 20 documents in 0:20, 0:20 left" in shown
    assert "100%, 40 documents in 0:40\x1b[K\n" in shown


def test_without_a_total_there_is_no_share(clock):
    assert run(io.StringIO(), clock, 0).splitlines()[-1] == "reading: 40 documents in 0:40"


def test_nothing_done_shows_nothing(clock):
    stream = io.StringIO()
    with Progress("reading", 10, stream):
        pass
    assert stream.getvalue() == ""
