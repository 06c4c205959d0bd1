"""What the launcher says about this process: its rank, the number of ranks, its place on the host, where all meet.

Knows DeepSpeed's and torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), SLURM's (srun) and
those of Open MPI and of MPICH and its relatives (PMI). Imports nothing heavy: a config is checked against the number of
ranks before torch is imported.
"""

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple

from nt_dist.errors import NTDistError, RunError

# One row a launcher: rank, world size, and where the local rank may stand. The first row whose first two variables are
# both set counts, so that what a launcher inside an allocation sets (torchrun under SLURM) wins over the allocation.
# srun with PMI sets PMI_RANK and PMI_SIZE, but the local rank only in a variable of its own.
VARIABLES = (
    ("RANK", "WORLD_SIZE", ("LOCAL_RANK",)),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    ("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID")),
    ("SLURM_PROCID", "SLURM_NTASKS", ("SLURM_LOCALID",)),
)
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM numbers the batch script's and interactive shells' own steps from here on
FIRST_PORT, NUM_PORTS = 12000, 16000  # of SLURM jobs; below 32768, where Linux begins to give ports to anyone
LOOPBACK = "127.0.0.1"


class Process(NamedTuple):
    """This process as its launcher counts it; without a launcher it is the only one."""

    rank: int = 0  # of all
    world_size: int = 1
    local_rank: int = 0  # on its host, which chooses its GPU


def _row(environment: Mapping[str, str]) -> tuple[str, str, tuple[str, ...]] | None:
    """The variables that count; None without a launcher."""
    for rank_name, size_name, local_names in VARIABLES:
        counts = not rank_name.startswith("SLURM") or _is_srun_task(environment)
        if counts and rank_name in environment and size_name in environment:
            return rank_name, size_name, local_names
    return None


def said_by(environment: Mapping[str, str] = os.environ) -> str:
    """Name the variables that say what rank this is and where all meet."""
    names = [*(_row(environment) or ())[:2], "MASTER_ADDR", "MASTER_PORT"]
    return ", ".join(dict.fromkeys(name for name in names if name in environment))


def forget(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take away what launchers have set, so that this process is the only one."""
    of_ranks = [name for rank, size, local in VARIABLES for name in (rank, size, *local)]
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", *of_ranks):
        environment.pop(name, None)


@contextlib.contextmanager
def said_once_a_host() -> Iterator[None]:
    """Let the first rank of each host alone say what goes wrong with a command line: all see the same files there."""
    try:
        yield
    except NTDistError as error:
        error.is_said = process().local_rank > 0
        raise


def process(environment: Mapping[str, str] = os.environ) -> Process:
    """Return what the launcher says about this process; a RunError names a variable that is no such number."""
    if row := _row(environment):
        rank_name, size_name, local_names = row
        size = _number(environment, size_name, 1)
        own = _number(environment, rank_name, 0)
        if own >= size:
            raise RunError(f"{rank_name} = {own} must be below {size_name} = {size}; the launcher sets both")
        local_name = next((name for name in local_names if name in environment), None)
        return Process(own, size, 0 if local_name is None else _number(environment, local_name, 0))
    return Process()


def meeting_point(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """The address and port where rank 0 of a job of several listens for the others; the same on every rank.

    MASTER_ADDR and MASTER_PORT where they are set, as DeepSpeed and torchrun do. Under srun the job's first node and a
    port made from the numbers of job and step, so that no host file is needed. Under MPI rank 0 chooses both and tells
    the others through mpi4py; every rank has to call then, and MPI is left at once. Raises RunError where they are not
    known, or no port.
    """
    address = environment.get("MASTER_ADDR")
    port = _number(environment, "MASTER_PORT", 1) if "MASTER_PORT" in environment else None
    if address and port:
        return address, port
    if "RANK" in environment and "WORLD_SIZE" in environment:
        raise RunError("RANK and WORLD_SIZE are set, but MASTER_ADDR or MASTER_PORT is not; the launcher sets all four")
    if "OMPI_COMM_WORLD_RANK" not in environment and _is_srun_task(environment):
        return address or _slurm_address(environment), port or _slurm_port(environment)
    mpi_address, mpi_port = _mpi_meeting_point(process(environment).world_size, said_by(environment))
    return address or mpi_address, port or mpi_port


def is_loopback(address: str) -> bool:
    """Whether ``address`` is the loopback on every machine: a host's own name may mean that only on the host itself."""
    with contextlib.suppress(ValueError):
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    return False


def first_host(node_list: str) -> str:
    """The first name of a SLURM node list: ``a1`` of ``a1,b2``, ``n008`` of ``n[008-011,020]``, ``r1n3`` of
    ``r[1-2]n[3-4]``. Done here and not by ``scontrol show hostnames``, which containers on compute nodes lack."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def interface_to(address: str) -> str | None:
    """The name of this host's network interface on the way to ``address``; None where it cannot be told."""
    import psutil  # DeepSpeed brings it

    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: asks the routing table
            own = probe.getsockname()[0]
    except OSError:
        return None
    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if any(entry.address == own for entry in entries)), None)


def _slurm_address(environment: Mapping[str, str]) -> str:
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return LOOPBACK
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    host = first_host(nodes) if nodes else None
    # The address of where srun was called is that of the first node only in a batch script, so the name is better; but
    # SLURM knows nodes by addresses of its own, and their names may mean nothing to others.
    launched_from = environment.get("SLURM_LAUNCH_NODE_IPADDR")
    if host and (not launched_from or _resolves(host)):
        return host
    if launched_from:
        return launched_from
    raise RunError("srun has set none of SLURM_STEP_NODELIST, SLURM_JOB_NODELIST; set MASTER_ADDR to the first node")


def _slurm_port(environment: Mapping[str, str]) -> int:
    job, step = (int(environment.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (job * 7 + step) % NUM_PORTS  # neighbours in a job's steps and in jobs' numbers stay apart


def _resolves(host: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.getaddrinfo(host, None))
    return False


def _mpi_meeting_point(size: int, said: str) -> tuple[str, int]:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RunError(
            "several MPI ranks find each other through the package mpi4py (extra [mpi]); without it set MASTER_ADDR "
            "and MASTER_PORT on all of them"
        ) from error
    world = MPI.COMM_WORLD
    if world.Get_size() != size:
        raise RunError(
            f"mpi4py sees {world.Get_size()} ranks, {said} say {size}: mpirun and mpi4py must be of one MPI; where "
            "these variables are left over from something else, --single runs alone"
        )
    hosts = world.allgather(socket.gethostname())
    port = world.bcast(free_port() if world.Get_rank() == 0 else None)
    MPI.Finalize()  # the ranks are left with os._exit, which MPI takes for a crash until it is finalized
    return LOOPBACK if len(set(hosts)) == 1 else hosts[0], port


def free_port() -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script and a shell from salloc carry the job's variables too."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment[name]
    with contextlib.suppress(ValueError):
        if int(text) >= least:
            return int(text)
    raise RunError(f"{name} = {text!r} must be a whole number of at least {least}; the launcher sets it")
