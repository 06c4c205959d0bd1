"""A run that is killed with SIGKILL goes on to the numbers of one that is not; and the command that says so."""

import sys

import pytest

from tests.e2e.commands import run_command, write_tiny_run

CHECK = (sys.executable, "tools/check_resume.py")


def test_a_killed_training_process_goes_on_to_the_same_numbers(tmp_path):
    config = write_tiny_run(tmp_path)
    layout = ("--ranks", "2", "parallel.tensor=2", "train.steps=1000")
    done = run_command(*CHECK, "--config", config, *layout, "--steps", "3", "--folder", tmp_path / "check", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("killed at step ") and said[0].endswith("resumed from step 3, compared up to step 6")
    assert said[1:] == [
        "lines of metrics: equal",
        "weights, moments and topologies: equal",
        "step, schedule and order of samples: equal",
        "the resumed run is the uninterrupted one",
    ]
    resumed = (tmp_path / "check" / "resumed.log").read_text()
    assert "step-00000003, step 3 of 1000" in resumed
    assert (tmp_path / "check" / "whole.log").read_text().count("continuing from") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "3"), "train.steps = 4 must be at least 2 × --steps = 6"),
        (("--steps", "2", "--ranks", "0"), "--ranks 0: must be at least 1"),
    ],
)
def test_what_cannot_be_checked_is_refused(tmp_path, arguments, says):
    done = run_command(*CHECK, "--config", write_tiny_run(tmp_path), *arguments)
    assert done.returncode == 2 and says in done.stderr
