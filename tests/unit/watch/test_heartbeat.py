"""The sign of life: what is written, and how long a rank may be silent in each phase."""

import mmap
import os
import tempfile
import time

import pytest

from nt_dist.watch import heartbeat
from nt_dist.watch.heartbeat import LEAVING, NANO, PHASES, SLACK, Heartbeat, map_shared, read_sign, shared_file


@pytest.fixture
def clock(monkeypatch):
    """Seconds by hand."""
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic_ns", lambda: int(now[0] * NANO))
    return now


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # a disk that is full, or maps no files, does not matter
    descriptor = shared_file()
    yield map_shared(descriptor)
    os.close(descriptor)


def test_a_sign_is_read_as_it_was_written(memory, clock):
    heartbeat = Heartbeat(memory, 45.0, 1800.0)
    heartbeat.enter("building")
    clock[0] += 7
    heartbeat.enter("compiling", 12)
    sign = read_sign(memory)
    assert (PHASES[sign.phase], sign.step, sign.beats, sign.left) == ("compiling", 12, 3, 0)
    assert sign.at == 1007 * NANO and sign.deadline == (1007 + 1800) * NANO
    heartbeat.exited(75)
    assert read_sign(memory).left == 76 and read_sign(memory).deadline == 0


def test_the_allowance_follows_what_the_phase_has_taken(memory, clock):
    heartbeat = Heartbeat(memory, 45.0, 1800.0)
    heartbeat.enter("stepping", 1)
    assert heartbeat.allowance() == 1800.0 and read_sign(memory).works  # a first time
    clock[0] += 2
    heartbeat.enter("stepping", 2)
    assert heartbeat.allowance() == 45.0 and not read_sign(memory).works
    clock[0] += 60
    heartbeat.enter("stepping", 3)
    assert heartbeat.allowance() == SLACK * 60
    heartbeat.enter("evaluating")
    assert heartbeat.allowance() == 1800.0
    for _ in range(2):
        heartbeat.enter("saving")
        clock[0] += 1
    assert heartbeat.allowance() == 1800.0  # the next one may be the last, which waits for the disk
    heartbeat.enter("preparing data")
    assert heartbeat.allowance() is None and read_sign(memory).deadline == 0


def test_work_that_gets_on_may_take_long_and_work_that_does_not_may_not(memory, clock):
    heartbeat = Heartbeat(memory, 45.0, 1800.0)
    heartbeat.enter("loading")
    with heartbeat.working("reading") as beat:
        assert heartbeat.allowance() == 1800.0
        for _ in range(1000):
            clock[0] += 3
            beat()
        assert heartbeat.allowance() == 45.0
        clock[0] += 30  # a weight that takes longer
        beat()
        assert read_sign(memory).deadline == int((clock[0] + SLACK * 30) * NANO)
    assert heartbeat.allowance() == 1800.0  # it waits for others, who have a limit each
    assert PHASES[read_sign(memory).phase] == "loading"


def test_a_rank_asked_to_leave_is_given_less_time_in_a_step_but_not_in_a_save(memory, clock):
    heartbeat = Heartbeat(memory, 45.0, 1800.0)
    heartbeat.enter("stepping", 1)
    clock[0] += 1
    heartbeat.enter("stepping", 2)
    clock[0] += 1
    heartbeat.exit_requested()  # from the signal's thread, while the main one waits for others
    assert read_sign(memory).deadline == int((1002 + LEAVING) * NANO)
    heartbeat.enter("saving")
    assert read_sign(memory).deadline == (1002 + 1800) * NANO


def test_a_beat_costs_next_to_nothing():
    heartbeat = Heartbeat(mmap.mmap(-1, mmap.PAGESIZE), 45.0, 1800.0)
    began = time.thread_time()
    for step in range(1000):
        heartbeat.enter("stepping", step)
    assert time.thread_time() - began < 0.1  # a tenth of a millisecond each, and a step takes many
