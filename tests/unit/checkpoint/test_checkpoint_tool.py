"""tools/checkpoint.py: list, verify, prune, diff."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nt_dist.checkpoint import inspect as checkpoint_inspect
from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.errors import CheckpointError
from tests.unit.checkpoint.checkpoint_case import CONFIG, PROGRESS, with_run
from tests.unit.checkpoint.test_checkpoint import save_on
from tests.unit.checkpoint.test_fragments import rewrite

ROOT = Path(__file__).resolve().parents[3]
KEEP_ALL = with_run(keep=10)


@pytest.fixture
def tool(monkeypatch):
    """Run the command in this process; return its exit code."""
    spec = importlib.util.spec_from_file_location("checkpoint_tool", ROOT / "tools" / "checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["checkpoint.py", *map(str, arguments)])
        return module.main()

    return run


@pytest.fixture
def folder(tmp_path):
    """A run's folder with the checkpoints of steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save_on(tmp_path / "checkpoints", config=KEEP_ALL, progress=replace(PROGRESS, step=step))
    return tmp_path


def test_list_shows_every_checkpoint_from_old_to_new_and_what_is_wrong(tool, folder, capsys):
    file = folder / "checkpoints" / "step-00000002" / "state-00000.safetensors"
    file.write_bytes(b"short")
    for start in (folder, folder / "checkpoints"):
        assert tool("list", start) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["step-00000001", "step-00000002", "step-00000003"]
        assert "224 samples" in lines[0] and "data 1" in lines[0] and "damaged" not in lines[0]
        assert str(file) in lines[1] and "damaged: 5 bytes" in lines[1]


def test_verify_looks_into_the_fragments_as_well(tool, folder, capsys):
    whole, damaged = (folder / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    assert tool("verify", whole, damaged) == 0
    rewrite(damaged, lambda parts: parts["value"].__setitem__(0, float("nan")))
    assert tool("verify", whole) == 0
    capsys.readouterr()
    assert tool("verify", whole, damaged) == 1
    output = capsys.readouterr().out
    assert f"{whole}: whole" in output and f"{damaged}: damaged" in output and "blocks.1.mlp.down/1/2/value" in output
    assert tool("verify", folder) == 1  # a run: all of its checkpoints
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line[0] != " "] == [
        "whole",
        "damaged",
        "whole",
    ]


def test_prune_deletes_what_is_not_to_be_kept(tool, folder, capsys):
    before = sorted(os.listdir(folder / "checkpoints"))
    assert tool("prune", folder, "--keep", 1, "--dry_run") == 0
    assert sorted(os.listdir(folder / "checkpoints")) == before and capsys.readouterr().out.count("would delete") == 2
    assert tool("prune", folder, "--keep", 1, "--keep_every", 2) == 0
    assert sorted(os.listdir(folder / "checkpoints")) == ["latest", "step-00000002", "step-00000003"]
    with pytest.raises(SystemExit):
        tool("prune", folder, "--keep", 0)


def test_diff_tells_equal_states_in_other_layouts_from_other_states(tool, tmp_path, capsys):
    first = save_on(tmp_path / "a")
    same = save_on(tmp_path / "b", (1, 2, 1, 2), "masked", replace(CONFIG, run=replace(CONFIG.run, dir="b")))
    assert tool("diff", first, same) == 0
    output = capsys.readouterr().out
    assert "run.dir: 'runs/default' and 'b'" in output
    assert output.splitlines()[-1].startswith("21 of 21 weights are equal")
    rewrite(same, lambda parts: parts["exp_avg"].__setitem__(0, 5.0))
    assert tool("diff", first, same) == 1
    output = capsys.readouterr().out
    assert "blocks.1.mlp.down: " in output and "20 of 21 weights are equal" in output
    later = save_on(tmp_path / "c", progress=replace(PROGRESS, step=8))
    assert tool("diff", first, later) == 1
    assert "step: 7 and 8" in capsys.readouterr().out


def test_diff_begins_with_a_summary_and_counts_long_lists(tool, tmp_path, capsys):
    def extra(first):
        return replace(PROGRESS, extra={"guard": {"losses": [first, *range(400)], "norm": 2.0}})

    paths = [save_on(tmp_path / name, progress=extra(number)) for number, name in enumerate("ab")]
    assert tool("diff", *paths) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("0 settings and 1 entries of the progress differ, 0 of 21 weights; 100.0% of all")
    assert lines[0] == "extra.guard.losses: 401 and 401 entries, 1 differ"
    names = ["blocks.10.a", "embedding", "blocks.2.b"]
    assert sorted(names, key=checkpoint_inspect.in_order) == ["blocks.2.b", "blocks.10.a", "embedding"]


def test_diff_counts_the_positions_that_are_shared(tool, tmp_path, capsys):
    first, second = save_on(tmp_path / "a"), save_on(tmp_path / "b")

    def move(parts):
        free = set(range(96)) - set(parts["positions"].tolist())
        positions = parts["positions"].tolist()
        parts["positions"][:] = sorted([*positions[1:], min(free)])

    rewrite(second, move)
    assert tool("diff", first, second) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("blocks.1.mlp.down")]
    shared, active = (int(line.split()[number]) for number in (1, 3))
    assert shared == active - 1


def test_bad_input_is_an_error_and_no_traceback(tool, tmp_path):
    with pytest.raises(CheckpointError, match="no folder with checkpoints"):
        tool("list", tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest.json: missing"):
        tool("diff", tmp_path, tmp_path)
    command = [sys.executable, ROOT / "tools" / "checkpoint.py", "list", tmp_path]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path}: no folder with checkpoints\n"


def test_no_escape_sequence_of_a_manifest_reaches_the_terminal(tool, folder, capsys):
    path = folder / "checkpoints" / "step-00000002" / "manifest.json"
    manifest = replace(read_manifest(path.parent), saved_at="\x1b]0;owned\x07", layout={"\x1b[2J": "\x9b"})
    path.write_text(manifest.to_json())
    (path.parent / "\x1b[2J").write_text("")
    for command in (("list", folder), ("verify", path.parent), ("diff", path.parent, path.parent)):
        tool(*command)
        output = capsys.readouterr().out
        assert output and not {"\x1b", "\x07", "\x9b"} & set(output)
    tool("list", folder)
    assert r"\x1b]0;owned\x07" in capsys.readouterr().out
