"""A real training of two ranks, one of which is stopped in mid-step."""

import re
import signal
import time

ENDLESS = ("train.steps=100000", "run.log_every=1", "run.save_every=5", "run.eval_every=0")


def test_a_stopped_rank_ends_the_job_and_says_where_the_other_waits(start_job, tmp_path):
    job = start_job(2, *ENDLESS, "run.stall_timeout=3")
    job.wait_for_step(8)
    job.ranks[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    codes, said = job.end(timeout=60.0)
    assert time.monotonic() - began < 60.0
    assert codes == [-signal.SIGKILL] * 2
    assert re.search(r"^error: rank 1 on \S+ has been stopped \(SIGSTOP\) for \d+ s in step \d+ \(", said[0], re.M), (
        said
    )
    assert re.search(r"^rank 0: step \d+ \(\S+\), File .*called from File .*nt_dist", said[0], re.M), said[0]
    assert re.search(r"^error: rank 1 on \S+ is ended: rank 1", said[1], re.M), said[1]
    assert sorted((tmp_path / "run" / "checkpoints").glob("step-*"))  # whole, and there to go on from
