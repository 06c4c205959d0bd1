"""Ranks come together, or say for whom they wait and can be stopped meanwhile."""

import signal
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from nt_dist.errors import RunError
from nt_dist.parallel import launcher, meeting, mesh
from nt_dist.parallel.meeting import meet

LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def environment(monkeypatch):
    """Variables of a launcher whose other ranks are not there; what is said is heard soon."""
    for name, value in {**LEFT_OVER, "MASTER_PORT": str(launcher.free_port())}.items():
        monkeypatch.setenv(name, value)
    said = []
    monkeypatch.setattr(meeting, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(meeting.LOGGER, "warning", lambda text, *values: said.append(text % values))
    return said


@pytest.mark.parametrize(("rank", "missing"), [("0", "rank 1, 2, 3"), ("2", "rank 0")])
def test_who_is_awaited_is_said_once_and_at_the_end(environment, monkeypatch, rank, missing):
    monkeypatch.setenv("RANK", rank)
    address, port = launcher.meeting_point()
    requests = []

    class Store(dist.TCPStore):
        def get(self, key):
            requests.append(key)
            return super().get(key)

        check = None  # once for each rank, by each rank, thousands of them: that takes minutes

    monkeypatch.setattr(dist, "TCPStore", Store)
    variables = "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT say; --single runs alone"
    expected = f"rank {rank} of 4 waits at {address}:{port} for {missing}, as {variables}"
    with pytest.raises(RunError) as caught:
        meet(timedelta(seconds=1))
    assert environment == [expected] and str(caught.value) == f"{expected}; nobody came in time"
    assert len(requests) == (2 if rank == "0" else 0)  # one for each time that it is said


def test_the_variables_that_are_named_are_the_launchers_own(environment, monkeypatch):
    """In a shell under srun, say: not those that DeepSpeed is given after them."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name)
    slurm = {"PROCID": 1, "NTASKS": 4, "LOCALID": 1, "JOB_ID": 7, "STEP_ID": 0, "STEP_NUM_NODES": 1}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(mesh, "TIMEOUT", timedelta(seconds=1))
    with pytest.raises(RunError, match="for rank 0, as SLURM_PROCID, SLURM_NTASKS, MASTER_PORT say; --single"):
        mesh._join("gloo", timedelta(seconds=5), is_alone=False)


def test_ctrl_c_ends_the_waiting_at_once(environment):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what runs behind them ignore
    begin = time.monotonic()
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            meet(timedelta(seconds=30))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 5


def test_ranks_that_come_late_share_a_store(environment, monkeypatch):
    ranks, stores = threading.local(), {}
    monkeypatch.setattr(launcher, "process", lambda: launcher.Process(ranks.own, 3))

    def come(rank):
        ranks.own = rank
        time.sleep(0.3 * (2 - rank))
        stores[rank] = meet(timedelta(seconds=20))

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    stores[2].set("word", "heard")
    assert [stores[rank].get("word") for rank in range(3)] == [b"heard"] * 3


def test_a_port_that_is_taken_is_named(environment):
    address, port = launcher.meeting_point()
    taken = f"{address}:{port} cannot be listened on: Address already in use"
    with meeting.socket.create_server((address, port)), pytest.raises(RunError, match=taken):
        meet(timedelta(seconds=5))


def test_a_rank_of_another_job_at_the_same_port_is_refused_and_the_job_meets(environment, monkeypatch):
    ranks, found = threading.local(), {}
    monkeypatch.setattr(launcher, "process", lambda: launcher.Process(ranks.own, 2))

    def come(name, rank, after):
        ranks.own = rank
        time.sleep(after)
        try:
            found[name] = meet(timedelta(seconds=20))
        except RunError as error:
            found[name] = str(error)

    jobs = [("rank 0", 0, 0), ("rank 1", 1, 0.2), ("another rank 1", 1, 0.5), ("another rank 0", 0, 0.5)]
    threads = [threading.Thread(target=come, args=each) for each in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert isinstance(found["rank 0"], dist.Store) and isinstance(found["rank 1"], dist.Store)
    assert "rank 1 of a job is there already: another job's?" in found["another rank 1"]
    assert "cannot be listened on: Address already in use" in found["another rank 0"]


def test_one_rank_reads_no_launchers_variables(environment, monkeypatch):
    """Tools of one process, and commands with --single."""
    made = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **options: made.append(options["world_size"]))
    mesh._join("gloo", timedelta(seconds=5), is_alone=True)
    assert made == [1] and not environment
    left = {**LEFT_OVER, "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "PATH": "/bin"}
    launcher.forget(left)
    assert left == {"SLURM_STEP_ID": "0", "PATH": "/bin"} and launcher.process(left) == (0, 1, 0)


def test_an_accelerator_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RunError, match="DS_ACCELERATOR = 'cuda': torch finds no GPU here; unset it, or set it to cpu"):
        mesh._device(0)
