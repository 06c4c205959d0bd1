"""A real training of two ranks, one of which is stopped in mid-step."""

import contextlib
import mmap
import os
import re
import signal
import socket
import time
from pathlib import Path

from nt_dist.watch.heartbeat import PHASES, read_sign

SINCE = "the steps since the last checkpoint"
ENDLESS = ("train.steps=100000", "run.log_every=1", "run.save_every=5", "run.eval_every=0")


def addresses_listened_on(job):
    """Of all ranks and their watchers: what the kernel says of the sockets that they hold."""
    processes = [rank.pid for rank in job.ranks]
    for pid in list(processes):
        processes += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    held = {os.readlink(file) for pid in processes for file in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    local = [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held]
    return [socket.inet_ntoa(bytes.fromhex(each)[::-1]) if len(each) == 8 else each for each in local]


def phase_of(rank):
    """Where a rank is, as it says in the memory that it shares with its watcher; empty while there is none."""
    for file in Path(f"/proc/{rank.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it has just been closed
            if file.readlink().name.endswith("(deleted)") and file.stat().st_size == mmap.PAGESIZE:
                with file.open("rb") as memory:
                    return PHASES[read_sign(memory.read()).phase]
    return ""


def test_a_rank_that_is_stopped_in_any_phase_is_named_with_it(start_job, long_form, tally):
    phases = ("preparing data", "building", "updating topology", "evaluating", "saving", "loading")
    for phase in phases if long_form else ():
        job = start_job(2, *ENDLESS, "run.stall_timeout=3", "run.eval_every=5", "run.async_save=false")
        if phase == "saving":
            job.wait_for_step(8)  # the last one has a checkpoint to load
        job.wait_until(lambda job=job, phase=phase: phase_of(job.ranks[1]) == phase, every=0.0005)
        job.ranks[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        codes, said = job.end(timeout=60.0)
        assert time.monotonic() - began < 60.0
        assert codes == [-signal.SIGKILL] * 2, said
        where = rf"error: rank 1 on \S+ has been stopped \(SIGSTOP\) for \d+ s in step \d+ \({phase}\)"
        assert re.search(f"^{where}$", said[0], re.M), said
        tally("a real rank is stopped (SIGSTOP) in each phase: all ended within a minute", 1, lost=SINCE)


def test_a_stopped_rank_ends_the_job_and_says_where_the_other_waits(start_job, tmp_path, tally):
    job = start_job(2, *ENDLESS, "run.stall_timeout=3")
    job.wait_for_step(8)
    assert (listening := addresses_listened_on(job)) and all(each == "127.0.0.1" for each in listening)
    job.ranks[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    codes, said = job.end(timeout=60.0)
    assert time.monotonic() - began < 60.0
    assert codes == [-signal.SIGKILL] * 2
    assert re.search(r"^error: rank 1 on \S+ has been stopped \(SIGSTOP\) for \d+ s in step \d+ \(", said[0], re.M), (
        said
    )
    assert re.search(r"^rank 0: step \d+ \([^)]+\), File .*called from File .*nt_dist", said[0], re.M), said[0]
    assert re.search(r"^error: rank 1 on \S+ is ended: rank 1", said[1], re.M), said[1]
    assert sorted((tmp_path / "run" / "checkpoints").glob("step-*"))  # whole, and there to go on from
    tally("a real rank is stopped (SIGSTOP) in mid-step: all ended within a minute", 1, lost=SINCE)
