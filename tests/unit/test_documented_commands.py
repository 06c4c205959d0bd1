"""Every command of the README and of the tools' own help is taken as it stands, up to where its work begins."""

import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from nt_dist.families import load_config

ROOT = Path(__file__).resolve().parents[2]
BEGINS = {  # where the work of each begins
    "train": ["nt_dist.training.loop.train"],
    "evaluate": ["nt_dist.evaluation.evaluate_checkpoint.join"],
    "generate": ["nt_dist.inference.load_ensemble"],
    "export_hf": ["nt_dist.inference.load_ensemble"],
    "import_hf": ["nt_dist.export.importing.open_foreign"],
    "checkpoint": ["nt_dist.checkpoint.inspect.in_folder"],
    "compare": ["nt_dist.study.training.train_plan", "nt_dist.evaluation.evaluate_checkpoint.join"],
    "diversity": ["nt_dist.study.training.train_missing"],
    "report": ["nt_dist.study.results.result_of"],
    "plan": ["nt_dist.planning.layouts.plan_layouts", "nt_dist.planning.memory.plan_stages"],
    "prepare_data": ["nt_dist.text.prepare.prepare_data"],
    "benchmark": ["benchmarks.run.run_counts"],
    "check_gpu": [],
}
SYNOPSIS = re.compile(r"\[[-\w]|…|\bFILE\b|\bFOLDER\b|\bRUN\b|\bCHECKPOINT\b|configs/X")  # what stands for something
OWN = [
    "runs/quickstart",
    "runs/quickstart_images",
    "runs/one",
    "runs/two",
    "runs/mine",
    "folder",
    "cifar10",
    "imagenet/train",
    "imagenet/val",
]


class Begun(Exception):
    """The work begins."""


def _raise(*_, **__):
    raise Begun


def _commands():
    """Each command once, a line each, comments cut off."""
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    texts += [ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in ROOT.glob("tools/*.py")]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if re.match(r"    (bash|python|deepspeed|mpirun) ", line)]
    found = [shlex.join(shlex.split(re.split("   #| {8}many", line)[0])) for line in lines if not SYNOPSIS.search(line)]
    return list(dict.fromkeys(found))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout, and beside it what a user has: runs, a model, pictures."""
    for name in ("configs", "docs", "tools", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in OWN:
        (tmp_path / name).mkdir(parents=True)
    for name in ("train", "test"):
        (tmp_path / "cifar10" / f"{name}.parquet").touch()
    (tmp_path / "run.toml").write_text((ROOT / "configs" / "quickstart.toml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", _commands())
def test_a_documented_command_comes_to_where_its_work_begins(command, place, monkeypatch):
    words = shlex.split(command.replace("/data/imagenet", "imagenet"))
    if words[:3] == ["python", "-m", "nt_dist.harness"]:  # test_harness.py runs it
        return
    if words[0] == "bash":
        settings = [word for word in words[2:] if re.match(r"\w+\.\w+=", word)]
        config = words[words.index("--config") + 1] if "--config" in words else "configs/quickstart.toml"
        assert (ROOT / words[1]).is_file()
        load_config(config, settings, world_size=2 if "quickstart" in config else 8)
        return
    number = next((int(words[words.index(flag) + 1]) for flag in ("--num_gpus",) if flag in words), 1)
    for name, value in {"RANK": 0, "WORLD_SIZE": number, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    script = next(position for position, word in enumerate(words) if word.endswith(".py"))
    spec = importlib.util.spec_from_file_location(Path(words[script]).stem, ROOT / words[script])
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for begin in BEGINS[spec.name]:
        monkeypatch.setattr(begin, _raise)
    for begin in ("evaluate_tasks", "run_check"):
        if hasattr(tool, begin):
            monkeypatch.setattr(tool, begin, _raise)
    monkeypatch.setattr(sys, "argv", words[script:])
    with pytest.raises(Begun):
        tool.main()


def test_there_are_commands():
    assert len(_commands()) > 30
    assert {Path(word).stem for command in _commands() for word in command.split() if word.endswith(".py")} == {*BEGINS}
