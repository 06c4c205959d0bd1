"""A rank that dies or stands still is named, and the job ends, on all ranks, in time, with nothing left behind.

The ranks are small processes (rank.py); tests of real ones are in test_real_ranks.py.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.rank import FAULT_AT, LONG_STALL, STALL

SINCE = "the steps since the last checkpoint"
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0  # seconds from a fault to the end of all; STALL and some more on a machine that is not too busy


def start(folder, fault, size):
    """The processes of a job of ``size`` ranks, which share one pipe for what they say."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MASTER_ADDR", None)
    command = [sys.executable, "-m", "tests.faults.rank"]
    reader, writer = os.pipe()
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), folder, fault], stderr=writer, stdout=writer, env=environment)
        for rank in range(size)
    ]
    os.close(writer)
    return ranks, reader


def run(folder, fault, size=3):
    """Run a job; return its exit codes, what it said and for how many seconds.

    The pipe ends with the last process that holds it, so that a watcher left behind would be a hang here.
    """
    began = time.monotonic()
    ranks, reader = start(folder, fault, size)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    text = text.replace("now\n", "")
    return [rank.wait(timeout=5) for rank in ranks], text, time.monotonic() - began


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("stop", r"rank 2 on \S+ has been stopped \(SIGSTOP\) for \d+ s in step 5 \(stepping\)"),
        ("deadlock", r"rank 2 on \S+ has stood still for \d+ s in step 5 \(stepping\)"),
        ("hold_the_interpreter", r"rank 2 on \S+ has stood still for \d+ s in step 5 \(stepping\)"),
        ("fall_silent", r"rank 2 on \S+: nothing has been heard of its host for \d+ s; it was in step 5 \("),
        ("first_fall_silent", r"rank 0 on \S+: nothing has been heard of its host for \d+ s; it was in step \d \("),
        ("first_stop", r"rank 0 on \S+ has been stopped \(SIGSTOP\)"),
        ("rewatched_stop", r"rank 2 on \S+ has been stopped \(SIGSTOP\) for \d+ s in step 5 \(stepping\)"),
    ],
)
def test_a_rank_that_stands_still_is_named_and_all_are_ended(tmp_path, tally, fault, says):
    ranks, reader = start(tmp_path, fault, 3)
    left_alone = 0 if fault == "first_fall_silent" else 2 if fault == "fall_silent" else None
    pipe, before = os.fdopen(reader), ""
    while (line := pipe.readline()) != "now\n":
        assert line.endswith("another one is started\n")
        before += line
    began = time.monotonic()
    codes = [rank.wait(timeout=LIMIT) for number, rank in enumerate(ranks) if number != left_alone]
    assert time.monotonic() - began < LIMIT
    if left_alone is not None:  # a real host's watcher would run, find itself alone, and end its rank
        rank = ranks[left_alone]
        (watcher,) = Path(f"/proc/{rank.pid}/task/{rank.pid}/children").read_text().split()
        os.kill(int(watcher), signal.SIGCONT)
        codes.append(rank.wait(timeout=LIMIT))
    with pipe:
        text = pipe.read()
    assert codes == [-signal.SIGKILL] * 3, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {says}", errors[0]), text
    if fault == "rewatched_stop":  # all watchers were killed before
        assert len(re.findall(r"rank \d on \S+: its watcher has died \(-9\)", before)) == 3, before
    if fault == "deadlock":
        assert f"in {fault}" in text and "where the threads of rank 2 stand" in text, text
    what = "a rank is stopped or stands still, or its host is silent"
    what = "all watchers are killed, then a rank is stopped" if before else what
    tally(f"{what}: all ended within a minute", 1, lost=SINCE)


def test_a_dead_rank_is_the_first_error(tmp_path, tally):
    ranks, reader = start(tmp_path, "die", 3)
    with os.fdopen(reader) as pipe:
        assert pipe.readline() == "now\n"
        first = pipe.readline()
        time.sleep(2.0)
        assert ranks[0].poll() is None  # it is said at once; the others may still see it by themselves
        pipe.read()
    assert re.match(rf"error: rank 2 on \S+ died without a word in step {FAULT_AT} \(stepping\)$", first), first
    assert [rank.wait(timeout=5) for rank in ranks] == [-signal.SIGKILL] * 3
    tally("a rank dies: all ended within a minute", 1, lost=SINCE)


def test_a_rank_that_says_itself_what_is_wrong_is_not_drowned(tmp_path):
    codes, text, seconds = run(tmp_path, "fail")
    assert seconds < LONG_STALL / 2
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 1], text
    assert "ValueError: this rank is wrong" in text
    assert text.index("ValueError") < text.index("error: rank 2")
    assert re.search(r"error: rank 2 on \S+ ended with an error in step 5", text), text


@pytest.mark.parametrize(("fault", "size"), [("take_long", 1), ("take_long", 3), ("read_long", 1)])
def test_a_long_phase_is_no_standstill(tmp_path, fault, size):
    codes, text, seconds = run(tmp_path, fault, size)
    assert codes == [0] * size and text == "", text
    assert seconds > 3 * STALL


@pytest.mark.parametrize("phase", ["building", "loading", "compiling", "saving", "preparing_data", "ending"])
def test_a_standstill_in_a_phase_without_a_limit_of_its_own_takes_a_minute(tmp_path, tally, long_form, phase):
    if not long_form and phase not in ("building", "saving"):
        return
    codes, text, seconds = run(tmp_path, f"stand_{phase}", 1)  # phase_timeout is 60 s
    assert codes == [-signal.SIGKILL] and seconds < 30, text
    where = phase.replace("_", " ")
    assert re.search(rf"^error: rank 0 on \S+ has stood still for \d+ s in step 5 \({where}\)$", text, re.M), text
    tally("a rank stands still where nobody knows how long it may take: ended within a minute", 1, lost=SINCE)


def test_one_rank_alone_is_watched_too(tmp_path):
    codes, text, _ = run(tmp_path, "deadlock", 1)
    assert codes == [-signal.SIGKILL] and "rank 0" in text and "has stood still" in text, text


def test_a_job_that_is_stopped_and_continued_as_a_whole_goes_on(tmp_path):
    ranks, reader = start(tmp_path, "group_stop", 2)
    everybody = []
    with os.fdopen(reader) as pipe:
        for _ in ranks:
            assert pipe.readline() == "stop us\n"
        for rank in ranks:
            everybody.append(rank.pid)
            everybody += map(int, Path(f"/proc/{rank.pid}/task/{rank.pid}/children").read_text().split())
        assert len(everybody) == 4
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5 * STALL)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        rest = pipe.read()
    assert [rank.wait() for rank in ranks] == [0, 0] and rest == "", rest
