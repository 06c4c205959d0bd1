"""Pictures, as commands: a run that stops and goes on is the run that did not; its checkpoint has its figures."""

import json

from tests.e2e.commands import run_command

TRAIN = ("python", "train.py", "--config", "configs/quickstart_images.toml")
SHORT = ("train.epochs=1.07", "train.warmup_steps=4", "sparsity.update_every=8", "run.log_every=4", "run.eval_every=12")
MIXED = ("data.mixup=0.2", "data.cutmix=1.0", "data.randaugment=2")


def lines_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    same = ("step", "loss", "loss_per_trail", "grad_norm", "topology_checksum", "eval")
    return [{key: line[key] for key in same if key in line} for line in lines]


def test_a_run_that_stops_goes_on_to_the_bit_and_its_checkpoint_evaluates_alike(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run, settings in ((whole, ()), (stopped, ("run.stop_after=10",)), (stopped, ("data.num_workers=0",))):
        done = run_command(*TRAIN, *SHORT, *MIXED, f"run.dir={run}", *settings)
        assert done.returncode == 0, done.stderr
    assert lines_of(whole) == lines_of(stopped)
    last = lines_of(whole)[-1]["eval"]
    assert set(last) >= {"accuracy_trails", "nll_ensemble_prob", "pictures"} and last["pictures"] == 359
    done = run_command(
        "python", "tools/evaluate.py", "--checkpoint", str(stopped), "--json", str(tmp_path / "eval.json")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "eval.json").read_text())["eval"] == last
