"""The runs of a plan are trained where they are missing, by whatever launches them; its ends are told."""

import json
import shlex
import sys

import pytest

from nt_dist.checkpoint.checkpoint import save
from nt_dist.errors import CheckpointError, RunError
from nt_dist.study import training
from nt_dist.study.plan import plan_runs
from tests.unit.checkpoint.checkpoint_case import PROGRESS, model_part, on_one_rank

# writes down what it was told, and ends as the file beside it says
LAUNCHER = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[2:]) + "\\n")
sys.exit(int((folder / "code").read_text()))
"""
TINY = """
[model]
hidden_size = 16
ffn_size = 24
num_layers = 2
num_attention_heads = 2
vocab_size = 30
max_seq_len = 8
[trails]
count = 2
layers = 1
[sparsity]
topology_shards = 2
[train]
steps = {steps}
warmup_steps = 1
"""


@pytest.fixture
def runs(tmp_path):
    """Two runs of seven steps, of which the first is done; and a launcher that trains nothing."""
    (tmp_path / "base.toml").write_text(TINY.format(steps=PROGRESS.step))
    found = plan_runs(str(tmp_path / "base.toml"), tmp_path / "runs", {"one": [], "two": ["train.seed=1"]}, "plan")
    _save(found["one"].dir, found["one"].config)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "code").write_text("0")
    return found


def _save(folder, config):
    def work(mesh):
        return save(folder / "checkpoints", config, mesh, *model_part(mesh, "masked", config, seed=1), PROGRESS)

    return on_one_rank(work)


def _launcher(folder):
    return shlex.join([sys.executable, str(folder / "launcher.py"), str(folder)])


def test_only_what_is_missing_is_trained_with_its_own_settings(runs, tmp_path):
    assert [training.is_done(run) for run in runs.values()] == [True, False]
    training.train_missing(runs.values(), _launcher(tmp_path))
    (call,) = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert call == [str(training.TRAIN), "--config", runs["two"].base, *runs["two"].overrides]
    assert training.TRAIN.is_file()


def test_a_run_that_is_not_at_its_last_step_is_not_done(runs, tmp_path):
    (tmp_path / "base.toml").write_text(TINY.format(steps=PROGRESS.step + 1))
    longer = plan_runs(str(tmp_path / "base.toml"), tmp_path / "runs", {"one": []}, "plan")["one"]
    with pytest.raises(CheckpointError, match=r"train.steps = 8 differs from the checkpoint's 7"):
        training.is_done(longer)
    allowed = [*runs["one"].overrides, "run.allow_schedule_change=true"]
    (run,) = plan_runs(longer.base, tmp_path / "runs", {"one": allowed}, "plan").values()
    assert not training.is_done(run)


def test_a_run_that_fails_ends_the_plan(runs, tmp_path):
    (tmp_path / "code").write_text("75")
    with pytest.raises(RunError, match="two: training ended with exit code 75; the same command goes on"):
        training.train_missing(runs.values(), _launcher(tmp_path))
    with pytest.raises(RunError, match="--launcher 'nowhere'"):
        training.train_missing(runs.values(), "nowhere")
