"""Work that one rank does for all, for as long as it takes."""

import os
import signal
import threading
import time

import pytest

from nt_dist.errors import DataError
from nt_dist.families import make_config
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import RankError, run_distributed
from nt_dist.training.signals import ExitRequested, listening
from nt_dist.watch.heartbeat import Heartbeat
from nt_dist.watch.watching import LOOK_SECONDS, agree_patiently

LOOKS = 4


class CountingHeartbeat(Heartbeat):
    beats = 0

    def beat(self):
        self.beats += 1


def _wait_for_the_main_rank(rank, world_size, fails=False):
    mesh = init_mesh(make_config({"train": {"batch_size": 2, "micro_batch_size": 1}}, None, world_size))
    heartbeat = CountingHeartbeat()

    def work():
        assert mesh.is_main
        time.sleep(LOOKS * LOOK_SECONDS)
        if fails:
            raise DataError("the disk is full")
        return "prepared"

    return agree_patiently(mesh, work, heartbeat), heartbeat.beats


def test_ranks_that_wait_for_the_main_ranks_work_look_about_meanwhile():
    (found, _), (other, beats) = run_distributed(_wait_for_the_main_rank, 2)
    assert found == other == "prepared"
    assert beats >= LOOKS - 1  # in a collective there would be none


def _leave_while_the_main_rank_works(rank, world_size):
    mesh = init_mesh(make_config({"train": {"batch_size": 2, "micro_batch_size": 1}}, None, world_size))
    with listening() as exit_request:

        def work():
            with exit_request.interrupts_work():
                time.sleep(60)

        if rank == 1:
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(ExitRequested, match="while data was prepared"):
            agree_patiently(mesh, work, exit_request.heartbeat)
        return time.monotonic() - began


def test_a_signal_to_any_rank_ends_the_main_ranks_work_in_seconds():
    assert max(run_distributed(_leave_while_the_main_rank_works, 2)) < 15.0


def test_what_fails_on_the_main_rank_fails_on_all():
    with pytest.raises(RankError, match="the disk is full"):
        run_distributed(_wait_for_the_main_rank, 2, True)
