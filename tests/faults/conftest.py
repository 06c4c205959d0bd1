"""What the fault tests share: a tiny run whose data are there, and how much of the long form is wanted."""

import os

import pytest

from nt_dist.config import load_config
from nt_dist.data.prepare import prepare_data
from tests.e2e.commands import write_tiny_run
from tests.faults.jobs import Job


@pytest.fixture(scope="session")
def long_form():
    """Whether `test_faults.sh --long` runs this."""
    return os.environ.get("NT_DIST_LONG_FAULTS") == "1"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The config of a tiny run; its data are prepared."""
    config = write_tiny_run(tmp_path_factory.mktemp("faults"))
    prepare_data(load_config(config))
    return config


@pytest.fixture
def start_job(tiny, tmp_path):
    """Starts real ranks in a folder of this test, and ends what is left of them."""
    jobs = []

    def start(size, *overrides, folder=tmp_path / "run"):
        jobs.append(Job(tiny, folder, size, *overrides))
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()
