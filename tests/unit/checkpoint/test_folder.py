"""The folder of checkpoints: whole or not there, whatever dies when; and the right one is found."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from nt_dist.checkpoint import folder as checkpoint_folder
from nt_dist.checkpoint.folder import begin, check_writable, checkpoints, commit, find, prune
from nt_dist.checkpoint.fragments import write_fragments
from nt_dist.checkpoint.inspect import examine
from nt_dist.checkpoint.manifest import Manifest, TrainingState, read_manifest
from nt_dist.errors import CheckpointError
from tests.unit.checkpoint.checkpoint_case import on_ranks


def make(folder, step, note=""):
    """A checkpoint without weights."""
    writing = begin(folder, step)
    files = {"state-00000.safetensors": write_fragments(writing / "state-00000.safetensors", {})}
    return commit(writing, Manifest(0, "", "", TrainingState(step, 0, 0, note), (), {}, {}, files, {}))


def names(folder):
    return sorted(os.listdir(folder))


class Killed(BaseException):
    """The process is gone."""


def killed_at(monkeypatch, number, work):
    """Do ``work`` with the process dying at its ``number``-th change to the disk; return whether it got so far."""
    count = 0

    def dying(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count > number:  # and whatever cleans up dies with it
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        try:
            work()
        except Killed:
            return True
    return False


def test_a_save_killed_anywhere_leaves_the_old_checkpoints_or_the_new_one(tmp_path, monkeypatch):
    """At every change to the disk: a first save, a later one, one that replaces the same step, with pruning."""

    def save(folder, step, note):
        make(folder, step, note)
        prune(folder, 2, 0)

    seen = set()
    for steps in [(1,), (1, 2), (1, 2, 3), (1, 2, 2)]:
        for number in range(100):
            folder = tmp_path / f"{steps}-{number}"
            for step in steps[:-1]:
                save(folder, step, "old")
            before = find(folder)
            if not killed_at(monkeypatch, number, lambda folder=folder, steps=steps: save(folder, steps[-1], "new")):
                break
            found = find(folder)
            if found is None or read_manifest(found).training_state.data_digest == "old":
                assert before is None or read_manifest(found).training_state.step == steps[-2], (steps, number)
                seen.add("old")
            else:
                assert read_manifest(found).training_state == TrainingState(steps[-1], 0, 0, "new")
                seen.add("new")
            assert found is None or not examine(found)
            after = make(folder, 9, "after")  # and the next save clears everything away
            assert find(folder) == after and not [name for name in names(folder) if name.startswith(".")]
        else:
            pytest.fail("it never came to an end")
    assert seen == {"old", "new"}


def test_the_newest_is_the_one_saved_last_not_the_highest_step(tmp_path):
    """A run that went back to step 2 goes on from where it then got, not from what it left."""
    for step in (2, 4, 6):
        make(tmp_path, step)
    back = make(tmp_path, 3)
    assert find(tmp_path) == back
    assert (tmp_path / "latest").read_text() == "step-00000003\n"
    prune(tmp_path, 2, 0)
    assert names(tmp_path) == ["latest", "step-00000003", "step-00000006"]


def test_damaged_ones_are_named_and_the_newest_whole_one_is_used(tmp_path, caplog):
    paths = [make(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[3] / "manifest.json").write_text("{")
    (paths[2] / "state-00000.safetensors").write_bytes(bytes(40))
    assert find(tmp_path) == paths[1]
    assert "step-00000004 is not used" in caplog.text and "manifest.json" in caplog.text
    assert "step-00000003 is not used" in caplog.text and "SHA-256" in caplog.text


def test_a_folder_with_only_damaged_ones_does_not_start_anew(tmp_path):
    for step in (1, 2):
        (make(tmp_path, step) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=f"{tmp_path}: none of the 2 checkpoints is whole"):
        find(tmp_path)


def test_one_of_another_version_is_not_passed_over(tmp_path):
    make(tmp_path, 1)
    path = make(tmp_path, 2) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(CheckpointError, match="format version 2"):
        find(tmp_path)
    with pytest.raises(CheckpointError, match="newer checkpoints, which would be overwritten: step-00000002"):
        find(tmp_path, str(tmp_path / "step-00000001"))
    assert find(tmp_path / "own", str(tmp_path / "step-00000001")).name == "step-00000001"


def test_nothing_there_is_a_start(tmp_path):
    assert find(tmp_path / "missing") is None
    (tmp_path / ".step-00000001.writing").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert find(tmp_path) is None


@pytest.mark.parametrize("what", ["step-00000002", "checkpoints", "run"])
def test_an_explicit_start_may_be_a_checkpoint_a_folder_or_a_run(tmp_path, what):
    folder = tmp_path / "run" / "checkpoints"
    make(folder, 1)
    path = make(folder, 2)
    start = {"step-00000002": path, "checkpoints": folder, "run": tmp_path / "run"}[what]
    assert find(tmp_path / "own", str(start)) == path
    moved = shutil.move(path, tmp_path / "kept by hand")
    assert str(find(tmp_path / "own", str(moved))) == str(moved)


def test_an_explicit_start_that_is_damaged_or_missing_is_refused(tmp_path):
    path = make(tmp_path, 2)
    (path / "state-00000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="state-00000.safetensors: damaged: 0 bytes"):
        find(tmp_path / "own", str(path))
    with pytest.raises(CheckpointError, match="missing"):
        find(tmp_path / "own", str(tmp_path / "step-00000009"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"run.resume_from = .*no checkpoint in"):
        find(tmp_path / "own", str(tmp_path / "run"))


def test_the_same_command_started_again_goes_on_and_does_not_begin_again(tmp_path, caplog):
    """A requeued job: it began from another run's checkpoint, and has some of its own by now."""
    start = make(tmp_path / "other", 5)
    own = tmp_path / "run" / "checkpoints"
    assert find(own, str(start)) == start
    paths = [make(own, step) for step in (6, 7)]
    assert find(own, str(start)) == paths[1] and "has checkpoints of its own" in caplog.text


def test_a_start_from_an_older_one_of_the_run_itself_would_overwrite_the_newer_and_is_refused(tmp_path):
    paths = [make(tmp_path, step) for step in (5, 6, 7)]
    with pytest.raises(CheckpointError, match=r"overwritten: step-00000006, step-00000007; move them away"):
        find(tmp_path, str(paths[0]))
    assert find(tmp_path, str(paths[2])) == paths[2]
    (paths[2] / "state-00000.safetensors").unlink()
    assert find(tmp_path, str(paths[1])) == paths[1], "a damaged one cannot be gone on from"


def test_a_folder_that_is_a_link_to_nothing_is_no_start(tmp_path):
    """The disk behind it is not mounted."""
    (tmp_path / "checkpoints").symlink_to(tmp_path / "away")
    for place in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(CheckpointError, match="checkpoints: cannot be read: No such file"):
            find(place)


def clutter(folder, how):
    """Make the checkpoint of step 1 something that is no folder, as a person may."""
    path = folder / "step-00000001"
    if how == "link":
        shutil.move(path, folder.parent / "moved")
        path.symlink_to(folder.parent / "moved")
    else:
        shutil.rmtree(path)
        path.write_text("a note")


@pytest.mark.parametrize("how", ["link", "file"])
@pytest.mark.parametrize("name", ["step-00000001", ".step-00000001.removed", ".step-00000001.writing", "again"])
def test_what_is_no_folder_stands_in_the_way_of_no_save(tmp_path, how, name):
    folder = tmp_path / "checkpoints"
    make(folder, 1)
    clutter(folder, how)
    if name == "again":  # the same step once more takes its place
        make(folder, 1, "new")
        assert read_manifest(folder / "step-00000001").training_state.data_digest == "new"
    else:
        (folder / "step-00000001").rename(folder / name)
    for step in (2, 3, 4):
        path = make(folder, step)
        prune(folder, 2, 0)
    assert find(folder) == path
    stays = ["step-00000001"] if (how, name) == ("file", "step-00000001") else []  # damaged: for a person to see
    assert names(folder) == ["latest", *stays, "step-00000003", "step-00000004"]
    assert how == "file" or (tmp_path / "moved" / "manifest.json").exists()  # a link alone goes


def test_a_folder_that_cannot_be_looked_at_prunes_nothing_and_warns(tmp_path, monkeypatch, caplog):
    make(tmp_path, 1)

    def refuse(folder):
        raise CheckpointError(f"{folder}: cannot be read: Permission denied")

    monkeypatch.setattr(checkpoint_folder, "checkpoints", refuse)
    prune(tmp_path, 1, 0)
    assert "old checkpoints stay" in caplog.text and "Permission denied" in caplog.text


def test_a_leftover_that_cannot_be_cleared_away_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / ".step-00000001.removed").mkdir()

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        path = make(tmp_path, 2)
    assert find(tmp_path) == path and "removed: left by a save" in caplog.text and "Permission denied" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json", "state-00000.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_only_plain_files_are_opened(tmp_path, name, kind):
    """A FIFO hangs whoever opens it, and a device gives bytes for ever."""
    path = make(tmp_path, 1)
    (path / name).unlink()
    if kind == "fifo":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to("/dev/zero")
    (found,) = checkpoints(tmp_path)
    (problem,) = examine(path)
    for text in (found.problem, problem):
        assert name in text and "it is not a plain file" in text
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is whole"):
        find(tmp_path)


def test_the_quick_look_does_not_hash_and_orders_by_age(tmp_path):
    paths = [make(tmp_path, step) for step in (3, 1, 2)]
    text = bytearray((paths[0] / "state-00000.safetensors").read_bytes())
    text[-1] ^= 1
    (paths[0] / "state-00000.safetensors").write_bytes(text)
    found = checkpoints(tmp_path)
    assert [each.step for each in found] == [3, 1, 2] and not any(each.problem for each in found)


def test_damaged_ones_neither_count_as_kept_nor_are_deleted(tmp_path):
    paths = [make(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[3] / "manifest.json").unlink()
    prune(tmp_path, 2, 0)
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003", "step-00000004"]


def test_a_multiple_is_kept(tmp_path):
    for step in (10, 15, 20, 25, 30):
        make(tmp_path, step)
        prune(tmp_path, 1, 20)
    assert names(tmp_path) == ["latest", "step-00000020", "step-00000030"]


def test_one_that_cannot_be_deleted_is_a_warning(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        make(tmp_path, step)

    def refuse(found):
        raise CheckpointError(f"{found.path}: cannot be deleted: Permission denied")

    monkeypatch.setattr(checkpoint_folder, "delete", refuse)
    prune(tmp_path, 1, 0)
    assert "step-00000001: cannot be deleted" in caplog.text


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: cannot be"):
        begin(tmp_path / "file", 1)
    with pytest.raises(CheckpointError, match="file: cannot be read"):
        find(tmp_path / "file")


def test_a_failed_rename_puts_the_replaced_one_back(tmp_path, monkeypatch):
    make(tmp_path, 1, "old")
    rename = os.rename

    def fails(source, target):
        if str(source).endswith(".writing"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        make(tmp_path, 1, "new")
    assert read_manifest(tmp_path / "step-00000001").training_state.data_digest == "old"


def test_serials_go_on_counting(tmp_path):
    for step in (5, 3):
        make(tmp_path, step)
    shutil.rmtree(tmp_path / "step-00000005")
    assert read_manifest(make(tmp_path, 4)).serial == 3
    assert replace(read_manifest(tmp_path / "step-00000003"), saved_at="").serial == 2


def test_the_name_of_the_newest_is_replaced_whole_or_stays_with_a_warning(tmp_path, monkeypatch, caplog):
    make(tmp_path, 1)
    fsync, count = os.fsync, 0

    def full_at_last(file):
        nonlocal count
        count += 1
        if count > 4:  # state, manifest, both folders; then comes ``latest``
            raise OSError(28, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_last)
        make(tmp_path, 2)
    assert "step-00000002 is saved: " in caplog.text
    assert "latest: cannot be written: No space left on device" in caplog.text
    assert (tmp_path / "latest").read_text() == "step-00000001\n" and find(tmp_path).name == "step-00000002"
    (tmp_path / ".latest.12345").write_text("")  # of a save that was killed
    make(tmp_path, 3)
    assert (tmp_path / "latest").read_text() == "step-00000003\n"
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


@pytest.mark.parametrize("what", ["file", "unwritable"])
def test_a_folder_that_takes_no_file_is_refused_at_the_start_on_all_ranks(tmp_path, what):
    folder = tmp_path / "checkpoints"
    if what == "file":
        folder.write_text("")
    else:
        folder.symlink_to("/proc/self")  # which root may not write to either
    for error in on_ranks((1, 2, 1, 1), lambda mesh: check_writable(folder, mesh)):
        assert isinstance(error, CheckpointError) and f"{folder}: cannot be written" in str(error)
    assert on_ranks((1, 2, 1, 1), lambda mesh: check_writable(tmp_path / "new", mesh)) == [None, None]
    assert names(tmp_path / "new") == []
