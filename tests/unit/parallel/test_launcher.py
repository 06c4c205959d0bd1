"""What each launcher's environment says about a rank."""

import subprocess
import sys
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
def test_place(environment, expected):
    place = launcher.rank(environment), launcher.world_size(environment), launcher.local_rank(environment)
    assert place == expected


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
        launcher.rank(environment)


def test_torch_is_not_imported():
    """A config is checked against the number of ranks before the seconds that importing torch takes."""
    code = "import sys, nt_dist.parallel.launcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
