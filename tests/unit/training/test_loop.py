"""The parts of the loop that need no ranks, and what train.py does before it imports torch."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config.stages import last_step
from nt_dist.engine.bad_steps import BadSteps, StepVerdict
from nt_dist.engine.engine import StepResult
from nt_dist.errors import CheckpointError
from nt_dist.families import make_config
from nt_dist.messages import LOGGER
from nt_dist.model.trails import build_model
from nt_dist.model.weights import weight_specs
from nt_dist.training import loop
from nt_dist.training.loop import Trainer, is_due
from nt_dist.training.profiling import peak_memory
from nt_dist.training.reporter import say_what_is_trained
from nt_dist.training.run_folder import print_table
from tests.unit.engine.test_averaging import state_of
from tests.unit.model.tiny import tiny
from tests.unit.resnet.small import small

ROOT = Path(__file__).resolve().parents[3]
ALONE = SimpleNamespace(is_main=True, any=lambda *flags: flags, gather_objects=lambda value: [value])


@pytest.mark.parametrize(("stop_after", "steps", "last"), [(0, 300, 300), (120, 300, 120), (500, 300, 300)])
def test_last_step(stop_after, steps, last):
    sections = {"train": {"steps": steps, "warmup_steps": 10}, "run": {"stop_after": stop_after}}
    assert last_step(make_config(sections, None, 1)) == last


def test_is_due():
    assert [step for step in range(1, 11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if is_due(step, 0, 10)] == [10]
    assert [step for step in range(1, 11) if is_due(step, 4, 300)] == [4, 8]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts the peak there")
def test_peak_memory_is_the_kernels_figure_in_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    kibibytes = int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    assert peak_memory(torch.device("cpu")) == pytest.approx(1024 * kibibytes, rel=0.02)


def test_the_table_is_that_of_the_last_evaluation(tmp_path, capsys):
    config = make_config({"run": {"dir": str(tmp_path)}}, None, 1)
    print_table(config)
    assert capsys.readouterr().out == ""
    figures = {"ppl_trails": [60.0, 62.0, 61.0], "ppl_ensemble_prob": 55.0, "ppl_ensemble_logit": 54.0}
    rest = {"disagreement": 0.3, "ensemble_gain": 6.0, "tokens": 4096}
    lines = [{"step": step, "eval": {**figures, **rest, "tokens": 4096 + step}} for step in (100, 200)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print_table(config)
    shown = capsys.readouterr().out
    assert "55.00" in shown and "4,296" in shown and "4,196" not in shown
    assert f"after step 200 of {make_config({}).train.steps}\n" in shown
    lines[-1]["samples"] = [32, 871]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[-1]) + "\n")
    print_table(config)
    assert "after step 200 of 1000, on 32 of 871 sequences, spread over all\n" in capsys.readouterr().out


def test_a_density_that_cannot_be_is_said_to_be_another(monkeypatch):
    said = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *values: said.append(text % values))
    mesh = SimpleNamespace(world_size=1, device=torch.device("cpu"))
    for density in (1.0, 0.3, 1e-6):
        config = tiny(sparsity={"density": density, "topology_shards": 2})
        say_what_is_trained(config, mesh, range(100))
    matrices = [spec for spec in weight_specs(config).values() if not spec.is_vector]
    least = sum(2 * spec.trails for spec in matrices) / sum(math.prod(spec.shape) * spec.trails for spec in matrices)
    assert len(said) == 1 and said[0].startswith(f"sparsity.density = 1e-06: {least:.3g} is stored")


def _start_without_torch(*arguments):
    """train.py in an interpreter in which importing torch or deepspeed fails."""
    code = (
        "import runpy, sys; sys.modules.update(torch=None, deepspeed=None, numpy=None); "
        "sys.argv = ['train.py', *sys.argv[1:]]; runpy.run_path('train.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_help_lists_every_setting_without_torch():
    done = _start_without_torch("--help")
    assert done.returncode == 0, done.stderr
    for key in ("sparsity.update_every", "run.stop_after", "train.lr"):
        assert key.split(".")[1] in done.stdout


def test_a_bad_config_ends_with_all_its_problems_before_torch_is_imported(tmp_path):
    folder = tmp_path / "run"
    done = _start_without_torch(
        "--local_rank=0", f"run.dir={folder}", "sparsity.density=1.5", "trails.layers=99", "train.step=3"
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    problems = done.stderr.splitlines()
    assert len(problems) == 3 and all(line.startswith("error: ") for line in problems)
    assert any("sparsity.density = 1.5" in line for line in problems)
    assert any("train.step " in line and "train.steps" in line for line in problems)
    assert not folder.exists()


def test_the_entry_point_stays_short():
    assert len((ROOT / "train.py").read_text().splitlines()) < 80


def test_a_run_goes_back_to_the_save_that_was_under_way():
    """What was copied before a bad step is good: it becomes a checkpoint before the run goes back to its newest one."""
    done = []

    class Saving:
        latest = Path("step-5")

        def settle(self):
            self.latest = Path("step-10")

    trainer = Trainer.__new__(Trainer)
    trainer.saver, trainer.bad_steps, trainer.reporter = Saving(), BadSteps(5), None
    trainer.config = make_config({"train": {"on_spike": "rollback"}}, None, 1)
    trainer.mesh, trainer.go_back = ALONE, done.append
    result = StepResult(torch.ones(1), torch.tensor(1.0), 9.0, False, StepVerdict.LOSS_SPIKE, 1e-3)
    assert trainer.note_bad_step(11, result, (80, 88))
    assert done == [Path("step-10")]


def test_evaluations_take_the_averages(monkeypatch):
    config = small(train={"average_decay": 1.0, "average_from": 0.0})
    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.model, trainer.reporter, trainer.weights = config, build_model(config), None, {}
    trainer.optimizer_state = state_of(config, trainer.model)
    trainer.mesh = SimpleNamespace(data=SimpleNamespace(rank=0, degree=1))
    trainer.data, trainer.heartbeat = SimpleNamespace(validation=[1] * 4), SimpleNamespace(enter=lambda _: None)
    trainer.exit_request = SimpleNamespace(until_set=lambda mesh, batches, note: batches)
    values, seen = next(trainer.model.parameters()), []
    average = values.detach().clone()
    values.data.zero_()
    monkeypatch.setattr(loop, "evaluate", lambda *_: seen.append(values.detach().clone()))
    monkeypatch.setattr(loop, "trail_overlap", lambda *_: None)
    assert trainer.evaluate() and torch.equal(seen[0], average) and not values.any()


def test_a_checkpoint_keeps_what_tells_the_data():
    saved = []
    trainer = Trainer.__new__(Trainer)
    trainer.step, trainer.consumed_samples, trainer.tokens, trainer.regrown, trainer.drop_fraction = 3, 24, 1, 0.1, 0.3
    trainer.heartbeat, trainer.optimizer_state = SimpleNamespace(enter=lambda _: None), SimpleNamespace(step=3)
    trainer.reporter = SimpleNamespace(lines_on_disk=lambda: 7)
    trainer.bad_steps, trainer.guard = BadSteps(5), SimpleNamespace(state=dict)
    trainer.data = SimpleNamespace(digest="abc", identity={"tokenizer_sha256": "def"}, train=range(80))
    trainer.saver = SimpleNamespace(save=lambda progress, is_last: saved.append(progress))
    trainer.save(is_last=True)
    assert (saved[0].data_digest, saved[0].extra["tokenizer_sha256"]) == ("abc", "def")
    assert (saved[0].extra["metrics_lines"], saved[0].extra["num_samples"]) == (7, 80)


GOOD = {"tokens": 1, "regrown": 0.1, "drop_fraction": 0.3, "bad_steps": {}, "guard": {}}


def _load(extra, monkeypatch):
    trainer = Trainer.__new__(Trainer)
    trainer.config = make_config({})
    trainer.mesh, trainer.model, trainer.optimizer_state = ALONE, None, None
    trainer.data, trainer.saver = SimpleNamespace(digest="", train=range(80)), SimpleNamespace()
    trainer.bad_steps = BadSteps(5)
    trainer.guard = SimpleNamespace(restore=lambda state: state.get("losses"))
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: TrainingState(3, 24, 3, "", extra))
    trainer.load(Path("step-3"))
    return trainer


def test_a_manifests_account_is_taken_over(monkeypatch):
    trainer = _load(GOOD, monkeypatch)
    assert (trainer.step, trainer.consumed_samples, trainer.tokens) == (3, 24, 1)
    assert (trainer.regrown, trainer.drop_fraction) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("found", "step", "aside"),
    [
        (None, 0, True),
        ("other/checkpoints/step-3", 3, True),
        ("run/checkpoints/step-3", 3, False),
        ("run/checkpoints/step-0", 0, True),  # an import
    ],
)
def test_metrics_of_what_is_not_continued_are_kept(found, step, aside, tmp_path):
    trainer = Trainer.__new__(Trainer)
    trainer.folder, trainer.step, trainer.metrics_lines = tmp_path / "run", step, 1
    trainer.config = make_config({})
    trainer.folder.mkdir()
    (trainer.folder / "config.toml").write_text("[train]\nsteps = 3\n")
    (trainer.folder / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    trainer.keep_metrics(found and tmp_path / found)
    assert (trainer.folder / "metrics.jsonl.1").exists() == aside != (trainer.folder / "metrics.jsonl").exists()
    assert (trainer.folder / "config.toml.1").exists() == aside


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("drop_fraction", None, "progress.extra.drop_fraction must be a number"),
        ("metrics_lines", "many", "progress.extra.metrics_lines must be a number"),
        ("tokens", "many", "progress.extra.tokens must be a number"),
        ("bad_steps", [3], "progress.extra has no account of bad steps"),
        ("bad_steps", {"left_out": [3]}, "progress.extra has no account of bad steps"),
        ("guard", 3, "progress.extra has no account of bad steps"),
    ],
)
def test_a_manifest_of_no_run_is_refused_by_name(key, value, message, monkeypatch):
    with pytest.raises(CheckpointError, match=f"step-3: the manifest's {message}"):
        _load(GOOD | {key: value}, monkeypatch)
