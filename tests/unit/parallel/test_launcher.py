"""What each launcher's environment says about a rank."""

import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from nt_dist.errors import RunError
from nt_dist.parallel import launcher

ROOT = Path(__file__).resolve().parents[3]
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, (1, 2, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2"}, (2, 4, 2)),
        (SRUN, (5, 8, 1)),
        ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}, (5, 8, 1)),
        ({**SRUN, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, (0, 2, 0)),
        ({**SRUN, "SLURM_STEP_ID": str(0xFFFFFFFB)}, (0, 1, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1, 0)),
    ],
    ids=["none", "deepspeed", "openmpi", "mpich", "srun", "srun-pmi", "torchrun-in-slurm", "batch-step", "batch"],
)
def test_a_process_is_as_its_launcher_counts_it(environment, expected):
    assert launcher.process(environment) == expected


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x' must be a whole number of at least 0"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE = '0' must be a whole number of at least 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 must be below WORLD_SIZE = 2"),
    ],
)
def test_nonsense_is_named(environment, message):
    with pytest.raises(RunError, match=message):
        launcher.process(environment)


@pytest.fixture(autouse=True)
def only_localhost_has_an_address(monkeypatch):
    """No name leaves this machine to be looked up."""
    look_up = socket.getaddrinfo

    def answer(host, *arguments, **options):
        if host not in ("localhost", "127.0.0.1"):
            raise socket.gaierror(f"{host} is unknown")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


ON_NODES = {"SLURM_JOB_ID": "77", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "no-such-node[03-04,9]"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, ("10.0.0.1", 29500)),
        ({**SRUN, "SLURM_JOB_ID": "77", "SLURM_STEP_NUM_NODES": "1"}, ("127.0.0.1", 12539)),
        ({**SRUN, **ON_NODES}, ("no-such-node03", 12539)),
        ({**SRUN, **ON_NODES, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}, ("10.0.0.7", 12539)),
        (
            {**SRUN, **ON_NODES, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_STEP_NODELIST": "localhost,b2"},
            ("localhost", 12539),
        ),
        ({**SRUN, **ON_NODES, "SLURM_STEP_ID": "1", "MASTER_ADDR": "a"}, ("a", 12540)),
        ({**SRUN, **ON_NODES, "MASTER_PORT": "4000"}, ("no-such-node03", 4000)),
    ],
    ids=["deepspeed", "srun-one-node", "srun", "srun-unknown-name", "srun-known-name", "own-address", "own-port"],
)
def test_meeting_point(environment, expected):
    assert launcher.meeting_point(environment) == expected


def test_neighbouring_jobs_and_steps_meet_at_ports_of_their_own():
    places = [{**SRUN, **ON_NODES, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
              for job in range(90000, 90020) for step in range(7)]  # fmt: skip
    ports = {launcher.meeting_point(place)[1] for place in places}
    assert len(ports) == len(places) and min(ports) >= 12000 and max(ports) < 32768


@pytest.mark.parametrize(
    "node_list, first",
    [
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("n[008-011,020]", "n008"),
        ("n[3,5],m1", "n3"),
        ("r[1-2]n[3-4]", "r1n3"),
        ("gpu-a[01-02].example", "gpu-a01.example"),
    ],
)
def test_first_host(node_list, first):
    assert launcher.first_host(node_list) == first


def test_ranks_without_a_meeting_point_say_what_is_missing():
    with pytest.raises(RunError, match="MASTER_ADDR or MASTER_PORT is not"):
        launcher.meeting_point({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    with pytest.raises(RunError, match="set MASTER_ADDR to the first node"):
        launcher.meeting_point({**SRUN, "SLURM_JOB_ID": "1"})
    with pytest.raises(RunError, match="MASTER_PORT = 'x' must be a whole number of at least 1"):
        launcher.meeting_point({**SRUN, "MASTER_PORT": "x"})


class FakeWorld:
    """What mpi4py says to rank 1 of 2."""

    def __init__(self, hosts):
        self.hosts = hosts

    def Get_rank(self):
        return 1

    def Get_size(self):
        return len(self.hosts)

    def allgather(self, value):
        return self.hosts

    def bcast(self, value):
        assert value is None
        return 4321


@pytest.mark.parametrize("hosts, address", [(["a", "a"], "127.0.0.1"), (["a", "b"], "a")])
@pytest.mark.parametrize("names", ["OMPI_COMM_WORLD_", "PMI_"])
def test_mpi_ranks_meet_where_rank_0_says(monkeypatch, hosts, address, names):
    finalized = []
    world = types.SimpleNamespace(COMM_WORLD=FakeWorld(hosts), Finalize=lambda: finalized.append(True))
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=world))
    # Open MPI's daemons are started by srun inside an allocation: the ranks see its variables too
    inherited = {**SRUN, **ON_NODES} if names.startswith("OMPI") else {}
    environment = {**inherited, f"{names}RANK": "1", f"{names}SIZE": "2"}
    assert launcher.meeting_point(environment) == (address, 4321)
    assert finalized
    with pytest.raises(RunError, match=f"mpi4py sees 2 ranks, {names}RANK, {names}SIZE say 3: .*--single"):
        launcher.meeting_point({**environment, f"{names}SIZE": "3"})
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RunError, match="mpi4py"):
        launcher.meeting_point(environment)


def test_interface_to():
    names = {name for _, name in socket.if_nameindex()}
    assert launcher.interface_to("127.0.0.1") in names
    assert launcher.interface_to("no-such-host.invalid") is None


def test_torch_is_not_imported():
    """A config is checked against the number of ranks before the seconds that importing torch takes."""
    code = "import sys, nt_dist.parallel.launcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
