"""The digits, trained, exported, loaded where nothing of ours is, and imported again, by the commands of users."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from nt_dist.inference import load_ensemble
from nt_dist.inference.ensemble import combine
from tests.e2e.commands import ROOT, run_command

SETTINGS = [
    *("model.block=basic", "model.stem=large", "model.stem_width=8", "model.width=8", "model.depths=[1,1]"),
    *("trails.count=2", "trails.layers=1", "data.max_images=200", "train.steps=4", "train.warmup_steps=1"),
    *("run.eval_every=4", "run.save_every=4", "run.eval_batches=1", "sparsity.update_every=2"),
]


def answer_of(folder, place, paths):
    """What a process with transformers alone says of an exported model."""
    environment = {**os.environ, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, ROOT / "tests" / "e2e" / "load_exported_pictures.py", folder, *paths]
    done = subprocess.run(list(map(str, command)), cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_digits_are_trained_exported_loaded_elsewhere_and_imported(tmp_path):
    def run(tool, *arguments):
        done = run_command(sys.executable, tool, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    configured = ("--config", "configs/quickstart_images.toml", *SETTINGS)
    run("train.py", *configured, f"run.dir={tmp_path}/run")
    said = run("tools/export_hf.py", "--checkpoint", tmp_path / "run", "--out", tmp_path / "ensemble")
    assert "read back, the largest difference of a logit is" in said
    run("tools/export_hf.py", "--checkpoint", tmp_path / "run", "--out", tmp_path / "trail", "--trail", "2")

    digits = torch.from_numpy(load_digits().images[:3] / 16 * 255).to(torch.uint8)
    pictures = digits[..., None].expand(-1, -1, -1, 3)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for picture, path in zip(digits, paths, strict=True):
        Image.fromarray(picture.numpy()).save(path)  # grey, as such a picture comes
    logits = load_ensemble(tmp_path / "run").logits(pictures)[:, :, 0]
    names = {str(number): str(number) for number in range(10)}

    answer = answer_of(tmp_path / "ensemble", tmp_path, paths)
    assert answer["type"] == "neurotrails_resnet" and answer["labels"] == names
    torch.testing.assert_close(torch.tensor(answer["trails"]), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(answer["logits"]), combine(logits), rtol=1e-4, atol=1e-4)
    best = combine(logits).exp().max(-1)
    assert [each["label"] for each in answer["pipeline"]] == list(map(str, best.indices.tolist()))
    assert [each["score"] for each in answer["pipeline"]] == pytest.approx(best.values.tolist(), rel=1e-3)

    answer = answer_of(tmp_path / "trail", tmp_path, paths)
    assert answer["type"] == "resnet" and answer["labels"] == names
    torch.testing.assert_close(torch.tensor(answer["logits"]), logits[1], rtol=1e-4, atol=1e-4)

    again = (*configured, f"run.dir={tmp_path}/again", "data.num_workers=0")
    said = run("tools/import_hf.py", "--model", tmp_path / "trail", *again)
    assert "step-00000000: " in said and "non-zero weights kept" in said
    run("train.py", *again, "run.stop_after=1")
    assert (tmp_path / "again" / "checkpoints" / "step-00000001").is_dir()
