"""Bad input of runs on pictures ends at once with key, value and rule, and leaves no checkpoint."""

import sys

import numpy as np
import pytest
from PIL import Image

from nt_dist.errors import ConfigError
from nt_dist.families import load_config
from tests.e2e.commands import ROOT, run_command, write_tiny_run

QUICKSTART = ROOT / "configs" / "quickstart_images.toml"
TINY = (
    *("model.depths=[1, 2]", "model.width=8", "model.stem_width=8", "model.norm_batch=2", "trails.layers=2"),
    *("train.steps=2", "train.batch_size=8", "train.micro_batch_size=4", "train.warmup_steps=1"),
    *("sparsity.topology_shards=4", "data.num_workers=0", "run.log_every=1"),
)


@pytest.mark.parametrize(
    "override, says",
    [
        (["model.family=resent"], ["model.family = 'resent'", "llama", "resnet"]),
        (["model.num_attention_heads=4"], ["model.num_attention_heads", "llama"]),
        (["data.tokenizer=auto"], ["data.tokenizer", "llama"]),
        (["trails.layers=7"], ["trails.layers = 7", "model.num_layers = 6"]),
        (["model.norm_batch=24"], ["model.norm_batch = 24 must divide train.micro_batch_size = 64", "16 or 32"]),
        (["parallel.tensor=2"], ["parallel.tensor = 2 must be 1", "resnet"]),
        (["parallel.pipe=2"], ["parallel.pipe = 2 must be 1", "resnet"]),
        (["data.source=folder"], ["data.path = '' must name a folder"]),
        (["data.source=folder", "data.path=nowhere"], ["data.path", "'nowhere'", "no such file"]),
        (["data.validation=nowhere"], ["data.validation", "'nowhere'", "no such file"]),
        (["data.source=foldr"], ["data.source = 'foldr'", "folder"]),
        (["data.padding=8"], ["data.padding = 8", "model.image_size = 8"]),
        (["model.num_classes=1"], ["model.num_classes = 1", "at least 2"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_a_wrong_setting_is_named_with_its_value_and_rule(override, says):
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, override, world_size=2 if "parallel" in override[0] else 1)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_a_key_of_pictures_is_none_of_text(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)data.flip.*resnet"):
        load_config(write_tiny_run(tmp_path), ["data.flip=true"])


def _train(tmp_path, *overrides, launcher=()):
    command = launcher or (sys.executable,)
    return run_command(*command, "train.py", "--config", QUICKSTART, *TINY, f"run.dir={tmp_path}/run", *overrides)


def _refused(done, tmp_path, *says):
    output = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in output, output
    assert all(part in output for part in says), output
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_every_rank_ends_on_a_broken_picture(tmp_path):
    for name in "abcdefghij":
        (tmp_path / "some" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "some" / name / f"{number}.png")
    (tmp_path / "some" / "c" / "2.png").write_bytes(b"no picture")
    launcher = ("deepspeed", "--num_gpus", "2", "--master_port", "29635")
    places = f"data.path={tmp_path}/some", f"data.validation={tmp_path}/some"
    done = _train(tmp_path, "data.source=folder", *places, launcher=launcher)
    _refused(done, tmp_path, "c/2.png", "cannot be read as a picture", "data.max_bad_share = 0.0 of 40")


def test_a_checkpoint_of_the_other_family_is_refused_and_kept(tmp_path):
    first = _train(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    before = sorted(each.name for each in (tmp_path / "run" / "checkpoints").iterdir())
    text = run_command(sys.executable, "train.py", "--config", write_tiny_run(tmp_path))
    output = text.stdout + text.stderr
    assert text.returncode == 2 and "Traceback" not in output and "model.family" in output, output
    assert before == sorted(each.name for each in (tmp_path / "run" / "checkpoints").iterdir())
