"""A checkpoint from before optimizer state was named moments goes on as the code that wrote it would have.

The fixture is the run's folder at step 3 of 6, its prepared data and tokenizer; what follows was recorded with commit
6ad032e.
"""

import os
import shutil
from pathlib import Path

import pytest

from nt_dist.families import load_config
from nt_dist.testing import run_distributed
from nt_dist.training.metrics_log import read_metrics

FIXTURE = Path(__file__).parents[1] / "fixtures" / "adamw_at_step_3"
MODIFIED = 1_700_000_000  # seconds; part of what prepared data is known by, and git does not keep it
LOSSES = {4: 5.57075834274292, 5: 5.5579023361206055, 6: 5.537905693054199}
TOPOLOGIES = {4: "7777caca72a5ed9c", 5: "7777caca72a5ed9c", 6: "7777caca72a5ed9c"}  # step 3: ee5a1d4fa1ac4fab


def _continue(rank, world_size, folder):
    from nt_dist.training.loop import train

    overrides = [f"run.dir={folder / 'run'}", f"data.path={folder / 'text.jsonl'}", "train.recipe=paper"]
    return train(load_config(folder / "config.toml", overrides, world_size=world_size))


def test_it_goes_on_as_before(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURE, folder)
    os.utime(folder / "text.jsonl", (MODIFIED, MODIFIED))
    prepared = set((folder / "run" / "data").glob("*"))
    assert run_distributed(_continue, 1, folder) == [0]
    assert set((folder / "run" / "data").glob("*")) == prepared  # nothing was prepared anew
    lines = {line["step"]: line for line in read_metrics(folder / "run" / "metrics.jsonl") if "loss" in line}
    assert {step: lines[step]["topology_checksum"] for step in TOPOLOGIES} == TOPOLOGIES
    assert {step: lines[step]["loss"] for step in LOSSES} == pytest.approx(LOSSES, rel=1e-6)
