"""Signals ask a run to leave: once politely, twice at once, whatever the main thread does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nt_dist.errors import DataError
from nt_dist.training.signals import SAME_SECONDS, SIGNALS, ExitRequested, listening

ROOT = Path(__file__).resolve().parents[3]


class OneRank:
    def any(self, *flags):
        return flags


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_the_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with listening() as exit_request:
        assert not exit_request.is_set_anywhere(OneRank())
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the launcher's copy of the same
        assert exit_request.is_set_anywhere(OneRank())
        with pytest.raises(ExitRequested, match="before a first step"):
            exit_request.check_before_first_step(OneRank())
    assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once_although_the_main_thread_waits_in_a_library():
    code = """
import ctypes, os, signal
from nt_dist.training.signals import listening
with listening() as exit_request:
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    print("waiting", flush=True)
    library.pthread_mutex_lock(mutex)  # no handler of Python's runs any more
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout.readline() == b"waiting\n"
            process.send_signal(signal.SIGUSR1)
            time.sleep(SAME_SECONDS + 1)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_work_that_can_be_stopped_anywhere_is_stopped_in_its_middle():
    done = []
    with listening() as exit_request:
        with pytest.raises(ExitRequested, match="while data was prepared"), exit_request.interrupts_work():
            done.append("begun")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done.append("gone on")
        with pytest.raises(ExitRequested), exit_request.interrupts_work():  # it is not begun any more
            done.append("begun again")
    assert done == ["begun"]


def test_what_the_same_signal_broke_is_not_blamed():
    with listening() as exit_request:
        with pytest.raises(DataError), exit_request.interrupts_work():
            raise DataError("a process died")
        exit_request._first()
        exit_request._interrupts = False
        with pytest.raises(ExitRequested), exit_request.interrupts_work():
            raise DataError("a process died")


def test_things_end_when_any_rank_is_asked():
    stops = []
    with listening() as exit_request:
        given = []
        for thing in exit_request.until_set(OneRank(), range(5), lambda: stops.append("stopped")):
            given.append(thing)
            if thing == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
        assert given == [0, 1, 2] and stops == ["stopped"]
        assert list(exit_request.until_set(OneRank(), [], stops.clear)) == [] and stops
