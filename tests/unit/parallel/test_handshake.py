"""Ranks that do not run the same are found and named; the ranks here are threads that meet at a barrier."""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from nt_dist.errors import RunError
from nt_dist.families import make_config
from nt_dist.parallel import handshake
from nt_dist.parallel.handshake import check_alike, check_config_and_code, code_version


def on_ranks(works):
    """Calls each of ``works`` with what gathers over all of them, a thread each; returns what each raised."""
    barrier, said = threading.Barrier(len(works)), [None] * len(works)

    def run(rank):
        def gather(thing):
            said[rank] = thing
            barrier.wait(10)
            everything = list(said)
            barrier.wait(10)
            return everything

        world = SimpleNamespace(gather_objects=gather, is_main=rank == 0)
        world.is_same = lambda digest: len(set(gather(digest))) == 1
        try:
            works[rank](world)
        except RunError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, range(len(works))))


def test_equal_ranks_pass():
    assert on_ranks([lambda world: check_config_and_code(world, make_config({}))] * 3) == [None] * 3


def test_a_rank_with_another_config_is_named_on_every_rank():
    configs = [make_config({}), make_config({}), make_config({"train": {"lr": 0.5}}), make_config({})]
    errors = on_ranks([lambda world, config=config: check_config_and_code(world, config) for config in configs])
    assert len(set(errors)) == 1
    assert errors[0].startswith("rank 2 on ") and errors[0].endswith(
        f"has another config: train.lr = 0.5 (rank 0: {make_config({}).train.lr})"
    )


def test_the_one_that_differs_is_named_although_it_is_rank_0():
    parts = [{"its digest": "a"}, {"its digest": "b"}, {"its digest": "b"}]
    errors = on_ranks([lambda world, part=part: check_alike(world, "data", part) for part in parts])
    assert errors[0].startswith("rank 0 on ") and "has another data: its digest = 'a' (rank 1: 'b')" in errors[0]


def test_code_version_sees_every_source_file(tmp_path, monkeypatch):
    whole = code_version()
    assert "nt_dist/parallel/handshake.py" in whole and "nt_dist/errors.py" in whole and whole["torch"]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.py").write_text("x = 1")
    monkeypatch.setattr(handshake, "PACKAGE", tmp_path)
    before = code_version()
    (tmp_path / "part" / "one.py").write_text("x = 2")
    after = code_version()
    assert {name for name in after if after[name] != before[name]} == {"nt_dist/part/one.py"}


@pytest.mark.parametrize("missing", [0, 1])
def test_a_part_that_only_some_have_is_named(missing):
    parts = [{"a": 1}, {"a": 1}, {"a": 1}]
    parts[missing] = {"a": 1, "b": 2}
    errors = on_ranks([lambda world, part=part: check_alike(world, "code version", part) for part in parts])
    assert f"rank {missing} on " in errors[2] and "b = 2" in errors[2] and "missing" in errors[2]


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(handshake, "PACKAGE", tmp_path / "nt_dist")
    ask = handshake.commit.__wrapped__
    assert ask() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"], ["tag", "-a", "v1", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert ask() == head[:12]
    (tmp_path / "file").write_text("two")
    assert ask() == head[:12] + "+"
    monkeypatch.setenv("PATH", "")
    assert ask() == ""
