"""What the launcher says about this process: its rank, the number of ranks, its place on the host.

Knows DeepSpeed's and torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK), SLURM's (srun) and those of Open MPI and of
MPICH and its relatives (PMI). Imports nothing heavy: a config is checked against the number of ranks before torch is
imported.
"""

import os
from collections.abc import Mapping

from nt_dist.errors import RunError

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


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's global rank; 0 without a launcher. Raises RunError on a variable that is no rank."""
    return _place(environment)[0]


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """The number of ranks of the job; 1 without a launcher. Raises RunError on a variable that is no number."""
    return _place(environment)[1]


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's number on its host, which chooses its GPU; 0 without a launcher."""
    return _place(environment)[2]


def _place(environment: Mapping[str, str]) -> tuple[int, int, int]:
    for rank_name, size_name, local_names in VARIABLES:
        if rank_name not in environment or size_name not in environment:
            continue
        if rank_name.startswith("SLURM") and not _is_srun_task(environment):
            continue
        size = _number(environment, size_name, 1)
        own = _number(environment, rank_name, 0)
        if own >= size:
            raise RunError(f"{rank_name} = {own} must be below {size_name} = {size}; the launcher sets both")
        local_name = next((name for name in local_names if name in environment), None)
        return own, size, 0 if local_name is None else _number(environment, local_name, 0)
    return 0, 1, 0


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script and a shell from salloc carry the job's variables too."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment[name]
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise RunError(f"{name} = {text!r} must be a whole number of at least {least}; the launcher sets it")
    return value
