"""The pool of ranks itself: fresh state for each task, failures named, nothing left hanging."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nt_dist.errors import TopologyError
from nt_dist.parallel.mesh import without_compiled_ops
from nt_dist.testing import RankError, run_distributed

ROOT = Path(__file__).resolve().parents[2]


def _sum_of_ranks(rank, world_size, scale):
    total = torch.tensor([float(rank + 1) * scale])
    dist.all_reduce(total)
    assert os.environ["RANK"] == os.environ["LOCAL_RANK"] == str(rank) and os.environ["WORLD_SIZE"] == str(world_size)
    return os.getpid(), total, torch.get_num_threads()


def test_ranks_are_reused_and_results_come_in_rank_order():
    first = run_distributed(_sum_of_ranks, 2, 10.0)
    second = run_distributed(_sum_of_ranks, 1, 1.0)
    assert [total.item() for _, total, _ in first] == [30.0, 30.0]
    assert [threads for _, _, threads in first] == [1, 1]
    assert second[0][0] == first[0][0] and first[0][0] != first[1][0]


def _leave_traces(rank, world_size):
    import deepspeed
    from deepspeed.utils import groups

    drawn = torch.rand(1).item()
    with without_compiled_ops():
        deepspeed.init_distributed(verbose=False)
    groups.mpu = "left over"
    groups._EXPERT_PARALLEL_GROUP["left over"] = 1
    os.environ["LEFT_OVER"] = "1"
    sys.path.append("left over")
    torch.set_default_dtype(torch.float64)
    return drawn


def _find_traces(rank, world_size):
    from deepspeed.comm import comm
    from deepspeed.utils import groups

    found = (comm.cdb, groups.mpu, groups._EXPERT_PARALLEL_GROUP, os.environ.get("LEFT_OVER"), "left over" in sys.path)
    return found, torch.get_default_dtype(), torch.rand(1).item()


def test_each_task_begins_fresh():
    drawn = run_distributed(_leave_traces, 2)
    for rank, (found, dtype, again) in enumerate(run_distributed(_find_traces, 2)):
        assert found == (None, None, {}, None, False)
        assert dtype == torch.float32
        assert again == drawn[rank]


def _one_rank_fails(rank, world_size):
    if rank == 1:
        raise TopologyError("blocks.0.mlp.up differs")
    dist.barrier()


def _one_rank_dies(rank, world_size):
    if rank == 1:
        os._exit(7)
    dist.barrier()


def _hang_here(rank, world_size):
    if rank == 1:
        time.sleep(60)
    dist.barrier()


def test_the_first_failing_rank_is_named_and_the_pool_goes_on():
    with pytest.raises(RankError, match="rank 1 failed(.|\n)*_one_rank_fails") as caught:
        run_distributed(_one_rank_fails, 2)
    assert caught.value.rank == 1
    assert isinstance(caught.value.__cause__, TopologyError) and "mlp.up" in str(caught.value.error)
    assert len(run_distributed(_sum_of_ranks, 2, 1.0)) == 2


def test_a_dead_rank_is_named():
    with pytest.raises(RankError, match="rank 1 ended with exit code 7"):
        run_distributed(_one_rank_dies, 2)


def test_a_hanging_task_ends_at_its_timeout_and_shows_where_it_stood():
    run_distributed(_sum_of_ranks, 2, 1.0)  # the ranks are up, so that the timeout is not spent on imports
    begin = time.monotonic()
    with pytest.raises(RankError, match="no answer within 2 s(.|\n)*_hang_here"):
        run_distributed(_hang_here, 2, timeout=2.0)
    assert time.monotonic() - begin < 15


def test_ranks_end_when_their_parent_is_killed():
    """Busy ones as well: otherwise an interrupted test run leaves its ranks behind."""
    script = (
        "import os, signal, threading\n"
        "from nt_dist.testing import pool\n"
        "ranks = pool.Pool('gloo')\n"
        "print(ranks._worker(0).process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _is_running(pid):
        time.sleep(0.1)
    assert not _is_running(pid)


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_world_sizes_outside_the_pool_are_refused():
    with pytest.raises(ValueError, match="world_size = 5"):
        run_distributed(_sum_of_ranks, 5, 1.0)
