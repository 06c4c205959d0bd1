"""The runs of a plan are trained where they are missing, by whatever launches them; its ends are told."""

import json
import runpy
import shlex
import sys
from dataclasses import replace

import pytest

from nt_dist.checkpoint.checkpoint import save
from nt_dist.errors import CheckpointError, ConfigError, RunError
from nt_dist.model.flops import token_flops
from nt_dist.study import training
from nt_dist.study.equal import equalized
from nt_dist.study.plan import plan_runs, read_plan
from nt_dist.study.tables import plan_rows
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


PLAN = """
base = "{folder}/base.toml"
dir = "{folder}/runs"
seeds = [0, 1]
tune.train.lr = [0.1, 0.2, 0.3]
[runs.tuned]
[runs.plain]
tune = {{}}
"""
PERPLEXITIES = {0.1: 30.0, 0.2: 20.0, 0.3: 25.0}


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "base.toml").write_text(TINY.format(steps=PROGRESS.step))
    (tmp_path / "plan.toml").write_text(PLAN.format(folder=tmp_path))
    return read_plan(tmp_path / "plan.toml")


def _pretend(run):
    """Leave what a training does, of a perplexity that goes by the learning rate."""
    _save(run.dir, run.config)
    perplexity = PERPLEXITIES.get(run.config.train.lr, 40.0)
    figures = {"ppl_trails": [50.0, 50.0], "ppl_ensemble_prob": perplexity, "ppl_ensemble_logit": 45.0}
    (run.dir / "metrics.jsonl").write_text(json.dumps({"step": PROGRESS.step, "eval": figures}) + "\n")


def test_a_model_is_tuned_with_one_seed_and_its_best_trained_with_all(plan, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "_train", lambda run, launcher: (calls.append(run.name), _pretend(run)))
    training.train_plan(plan)
    assert calls == ["tuned_lr0.1", "tuned_lr0.2", "tuned_lr0.3", "tuned_lr0.2_seed1", "plain", "plain_seed1"]
    training.train_plan(plan)
    assert len(calls) == 6  # all is done
    tuned, plain = (training.trained(model) for model in plan.models.values())
    assert [run.name for run in tuned.runs] == ["tuned_lr0.2", "tuned_lr0.2_seed1"]
    assert {what: each.prob for what, each in tuned.tried.items()} == {
        f"train.lr = {lr}": perplexity for lr, perplexity in PERPLEXITIES.items()
    }
    assert ([run.name for run in plain.runs], plain.tried) == (["plain", "plain_seed1"], {})


def test_what_has_been_trained_so_far_is_compared(plan):
    assert training.trained(plan.models["tuned"]) == training.TrainedModel([])
    for name in ("tuned_lr0.1", "tuned_lr0.3", "tuned_lr0.1_seed1"):
        _pretend(plan.runs[name])
    found = training.trained(plan.models["tuned"])
    assert [run.name for run in found.runs] == ["tuned_lr0.3"] and len(found.tried) == 2
    (plan.runs["tuned_lr0.1"].dir / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="tuned_lr0.1/metrics.jsonl: has no evaluation"):
        training.trained(plan.models["tuned"])


def test_a_folder_of_other_settings_is_told_before_anything_is_trained(plan, tmp_path, monkeypatch):
    _pretend(plan.runs["plain_seed1"])
    (tmp_path / "base.toml").write_text(TINY.format(steps=PROGRESS.step + 1))
    monkeypatch.setattr(training, "_train", None)
    with pytest.raises(CheckpointError, match="train.steps = 8 differs"):
        training.train_plan(read_plan(tmp_path / "plan.toml"))


def test_rows_are_the_best_of_each_model_and_ensembles_of_their_seeds(plan):
    for run in plan.runs.values():
        _pretend(run)
    plan = replace(plan, ensembles={"both": ["tuned", "plain"]})
    asked = {}
    rows = plan_rows(plan, lambda name, folders: asked.setdefault(name, [folder.name for folder in folders]))
    assert [(row.name, len(row.results)) for row in rows] == [("tuned", 2), ("plain", 2), ("both", 2)]
    assert asked["both"] == ["tuned_lr0.2", "plain"] and asked["both_2"] == ["tuned_lr0.2_seed1", "plain_seed1"]
    assert rows[0].tried == "train.lr = 0.1: 30.00; train.lr = 0.2: 20.00 (taken); train.lr = 0.3: 25.00"
    assert rows[1].tried == ""


def test_steps_that_make_runs_equal(plan, tmp_path, monkeypatch):
    (tmp_path / "base.toml").write_text(TINY.format(steps=400).replace("warmup_steps = 1", "warmup_steps = 40"))
    text = PLAN.format(folder=tmp_path) + "train.batch_size = 16\ntrain.micro_batch_size = 16\ntrails.count = 6\n"
    (tmp_path / "plan.toml").write_text(text)
    plan = read_plan(tmp_path / "plan.toml")
    tuned = plan.models["tuned"]
    (one, other) = equalized(plan, "tokens", tuned, None).models["plain"].tried[""]
    assert (one.name, other.name) == ("plain_steps800", "plain_seed1_steps800")
    assert (one.config.train.steps, one.config.train.warmup_steps, other.config.train.seed) == (800, 80, 1)
    assert equalized(plan, "tokens", tuned, None).models["tuned"].tried == tuned.tried
    (one, _) = equalized(plan, "flops", tuned, None).models["plain"].tried[""]
    flops = [token_flops(run.config).training_sparse * run.config.train.batch_size for run in (tuned.runs[0], one)]
    assert one.config.train.steps < 800 and one.config.train.steps * flops[1] == pytest.approx(400 * flops[0], rel=2e-3)

    def timed(run):  # the clock: 5 and 2 s a step after slow first ones
        assert (run.config.run.stop_after, run.config.run.save_every) == (60, 0)
        run.dir.mkdir(parents=True, exist_ok=True)
        pace = 100 / (2.0 if run.config.trails.count == 6 else 5.0)
        lines = [{"step": step, "tokens": 100 * step, "tokens_per_second": pace} for step in range(10, 70, 10)]
        lines[0]["tokens_per_second"] = 1.0
        (run.dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    models = equalized(plan, "time", tuned, timed).models
    assert {run.config.train.steps for run in models["plain"].runs} == {1000}
    assert models["tuned"].tried == tuned.tried
    with pytest.raises(RunError, match="tuned_lr0.1_stop_after60: has not been trained"):
        equalized(plan, "time", tuned, None)
    (tmp_path / "plan.toml").write_text(text + "train.epochs = 2.0\n")
    with pytest.raises(ConfigError, match="train.epochs of plain must be 0"):
        equalized(read_plan(tmp_path / "plan.toml"), "flops", tuned, None)


def test_a_run_that_fails_ends_the_plan(runs, tmp_path):
    (tmp_path / "code").write_text("75")
    with pytest.raises(RunError, match="two: training ended with exit code 75; the same command goes on"):
        training.train_missing(runs.values(), _launcher(tmp_path))
    with pytest.raises(RunError, match="--launcher '\"a': No closing quotation"):
        training.train_missing(runs.values(), '"a')
    with pytest.raises(RunError, match="--launcher 'nowhere'"):
        training.train_missing(runs.values(), "nowhere")


def test_all_runs_of_a_comparison_are_looked_at_before_the_first_is_evaluated(runs, tmp_path, monkeypatch):
    tool = runpy.run_path(str(training.TRAIN.parent / "tools" / "compare.py"))
    words = ["compare.py", runs["one"].dir, tmp_path / "nowhere", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    monkeypatch.setattr("nt_dist.evaluation.evaluate_checkpoint.join", lambda ranks: None)
    monkeypatch.setattr("nt_dist.study.results.result_of", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(CheckpointError, match="nowhere: there is no whole checkpoint"):
        tool["main"]()
