"""A process that saves all the time is killed at random moments; and disks that are full or read-only.

The state is a constant that is the step, so that a checkpoint made of two saves would be seen.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import find, verify
from nt_dist.checkpoint.manifest import TrainingState, read_manifest
from nt_dist.checkpoint.saving import Saver
from nt_dist.errors import CheckpointError
from nt_dist.families import DEFAULT
from nt_dist.training.metrics_log import METRICS, read_metrics
from nt_dist.training.reporter import Reporter
from nt_dist.training.run_folder import claim
from tests.unit.checkpoint.checkpoint_case import CONFIG, model_part, on_one_rank, with_run


def fill(optimizer, step):
    for state in optimizer.states.values():
        for tensor in state.values():
            tensor.fill_(float(step))


def save_endlessly(folder, is_last, committed):
    """Save step 1, 2, …; a byte to ``committed`` after each commit."""

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 1)
        saver = Saver(folder, with_run(keep=2), mesh, model, optimizer)
        for step in range(1, 1 << 20):
            fill(optimizer, step)
            saver.save(TrainingState(step, step, step, "abc"), is_last)
            fill(optimizer, -1)  # what is not in the snapshot now is lost
            saver.settle()
            os.write(committed, b".")

    on_one_rank(work)


def kill_after(seconds, folder, is_last):
    """Fork a process that saves, kill it ``seconds`` after its first commit, return how many it had committed."""
    reader, writer = os.pipe()
    child = os.fork()  # this process has imported what that one needs, and imports take seconds
    if not child:
        os.close(reader)
        try:
            save_endlessly(folder, is_last, writer)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"."
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with os.fdopen(reader, "rb") as rest:
        return 1 + len(rest.read())


@pytest.mark.parametrize("is_last", [True, False], ids=["in the way", "beside"])
def test_killed_at_a_random_point_of_a_save(tmp_path, long_form, tally, is_last):
    torch.set_num_threads(1)
    seeds = range(50 if long_form else 4)
    for seed in seeds:
        folder = tmp_path / str(seed)
        committed = kill_after(random.Random(seed).uniform(0, 0.3), folder, is_last)
        for path in folder.glob("step-*"):  # what has its name is whole, every hash of it
            verify(path)
        found = find(folder)
        step = read_manifest(found).training_state.step
        assert step in (committed, committed + 1)  # + 1: killed between the rename and the report of it
        tensors = {key: array for file in found.glob("*.safetensors") for key, array in load_file(file).items()}
        values = [array for key, array in tensors.items() if not key.endswith("positions")]
        assert values and all(np.all(array == step) for array in values)
        again = kill_after(0.0, folder, is_last)  # what the kill has left does not stand in the way
        assert again >= 1
        shutil.rmtree(folder)
        tally("killed at a random point of a save", 1, lost="the save that was being written")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here (root may): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("is_last", [True, False], ids=["in the way", "beside"])
def test_a_full_disk_fails_the_save_and_keeps_the_last_one(small_disk, tally, caplog, is_last):
    folder, filler, said = small_disk / "checkpoints", small_disk / "filler", []

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 1)
        saver = Saver(folder, with_run(keep=1, save_patience=0.0), mesh, model, optimizer)
        for step in (1, 2, 3):
            free = os.statvfs(small_disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 8192 if step == 2 else 0))
            fill(optimizer, step)
            try:
                saver.save(TrainingState(step, step, step, "abc"), is_last)
                saver.settle()
            except CheckpointError as problem:
                said.append(str(problem))
            assert read_manifest(find(folder)).training_state.step == (1 if step == 2 else step)
            assert not list(folder.glob(".*")), "something half-written stays"

    on_one_rank(work)
    (message,) = (each for each in said + caplog.messages if "No space left on device" in each)
    assert str(folder) in message
    tally("disk full during a save", 1, lost="nothing: the save is made up for by the next one")


def test_a_run_goes_back_on_a_full_disk(small_disk, tally, caplog):
    logged = [{"step": step, "loss": 2.0, "loss_per_trail": [1.5, 2.5]} for step in range(1, 5)]
    reporter = Reporter(small_disk, DEFAULT, 0, 9, {}, [])
    for record in logged:
        reporter.logged(record)
    reporter.close()
    free, filler = os.statvfs(small_disk), small_disk / "filler"
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize))
    reporter = Reporter(small_disk, DEFAULT, 2, 9, {}, [])
    assert [each["step"] for each in read_metrics(small_disk / METRICS)] == [1, 2]
    reporter.noted({"step": 2, "bad_step": "spike"} | {"what": "x" * 8192})  # more than the file has room for
    filler.unlink()
    reporter.logged(logged[2])
    assert reporter.lines_on_disk() == 4
    reporter.close()
    assert [each["step"] for each in read_metrics(small_disk / METRICS)] == [1, 2, 2, 3]
    assert f"{METRICS}: cannot be written: No space left on device" in caplog.text
    tally("the run goes back to a checkpoint on a full disk", 1, lost="nothing: lines and curves follow")


def test_a_read_only_folder_is_named(small_disk, tally):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(Exception, match=r"run\.dir = '.*run': cannot be made or written: Read-only file system"):
        claim(small_disk / "run")

    def save(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 1)
        checkpoint.save(small_disk / "checkpoints", CONFIG, mesh, model, optimizer, TrainingState(1, 1, 1, "abc"))

    with pytest.raises(CheckpointError, match="Read-only file system"):
        on_one_rank(save)
    tally("read-only run folder", 2, lost="nothing: refused at start, or a failed save")


def test_damage_of_any_kind_is_found_or_does_no_harm(tmp_path, long_form, tally):
    """A fuzzer over the reader: bytes changed, cut, added and removed anywhere, files lost and new."""
    whole = tmp_path / "whole"

    def save(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG, 1)
        checkpoint.save(whole, CONFIG, mesh, model, optimizer, TrainingState(7, 7, 7, "abc"))

    on_one_rank(save)
    (path,) = whole.glob("step-*")
    rounds = 1500 if long_form else 60
    for seed in range(rounds):
        copy = tmp_path / "copy" / path.name
        shutil.copytree(path, copy)
        how = damage(copy, random.Random(seed))
        for check in (verify, load_anyway):
            try:
                check(copy)
            except CheckpointError as error:
                assert str(copy) in str(error), how
            else:
                assert check is load_anyway, f"{how} is not found"
        shutil.rmtree(copy)
    tally("checkpoint files truncated, changed, lost, added", rounds, lost="nothing: named, and an older one is used")


def load_anyway(path):
    """Load without looking at the hashes: the reader itself may meet anything."""

    def work(mesh):
        model, optimizer = model_part(mesh, "compact", CONFIG)
        checkpoint.load(path, CONFIG, mesh, model, optimizer, verified=True)

    on_one_rank(work)


def damage(folder, chance):
    """Do one kind of damage to a file of a folder; say what."""
    files = sorted(folder.iterdir())
    file, kind = chance.choice(files), chance.randrange(6)
    data = bytearray(file.read_bytes())
    at = chance.randrange(len(data)) if kind < 3 or chance.random() < 0.5 else chance.randrange(min(64, len(data)))
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = chance.randbytes(chance.randrange(1, 20))
    elif kind == 3:
        data[at : at + 8] = chance.randbytes(8)
    elif kind == 4:
        file.unlink()
        return f"{file.name} lost"
    else:
        (folder / "stranger").write_bytes(data)
        return "a file too many"
    file.write_bytes(data)
    return f"{file.name}: kind {kind} at {at}"
