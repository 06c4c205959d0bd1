"""What the fault tests share: a tiny run whose data are there, and how much of the long form is wanted."""

import os
from pathlib import Path

import pytest

from nt_dist.families import load_config
from nt_dist.text.prepare import prepare_data
from tests.e2e.commands import write_tiny_run
from tests.faults.jobs import Job


@pytest.fixture(scope="session")
def long_form():
    """Whether `test_faults.sh --long` runs this."""
    return os.environ.get("NT_DIST_LONG_FAULTS") == "1"


@pytest.fixture(scope="session")
def tally():
    """``tally(fault, tried, lost)`` counts what was survived; the long form prints the table of it at its end.

    A fault that is not survived fails its test before it is counted.
    """
    counts: dict[tuple[str, str], int] = {}

    def count(fault: str, tried: int, lost: str) -> None:
        counts[fault, lost] = counts.get((fault, lost), 0) + tried

    yield count
    path = os.environ.get("NT_DIST_FAULTS_TABLE")
    if path:
        rows = [f"| {fault} | {tried} | {tried} | {lost} |" for (fault, lost), tried in counts.items()]
        head = ["| fault | times tried | times survived | what was lost |", "|---|---|---|---|"]
        Path(path).write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


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
