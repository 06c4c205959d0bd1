"""Saves beside the training: what is in them, when they are there, and what becomes of those that fail."""

import threading
import time
from contextlib import contextmanager

import pytest

from nt_dist.checkpoint import checkpoint, fragments, saving
from nt_dist.checkpoint.folder import find, verify
from nt_dist.checkpoint.manifest import TrainingState, read_manifest
from nt_dist.checkpoint.saving import Saver
from nt_dist.errors import CheckpointError, DiskError
from nt_dist.model.trails import weights_of
from tests.unit.checkpoint.checkpoint_case import CONFIG, model_part, on_one_rank, on_ranks, with_run


def progress(step, **extra):
    return TrainingState(step, step, step, "abc", extra)


def saver_of(mesh, folder, config=CONFIG):
    return Saver(folder, config, mesh, *model_part(mesh, "compact", config, 5))


@pytest.fixture
def gate(monkeypatch):
    """Writers wait until it is set."""
    event, write = threading.Event(), checkpoint.write_part

    def write_later(writing, snapshot):
        assert event.wait(20)
        return write(writing, snapshot)

    monkeypatch.setattr(checkpoint, "write_part", write_later)
    return event


def test_a_save_is_not_there_before_it_is_settled(tmp_path, gate):
    def work(mesh):
        saver = saver_of(mesh, tmp_path)
        counts = {"seen": 1}
        saver.save(progress(1, counts=counts), is_last=False)
        counts["seen"] = 2  # the run goes on; the checkpoint is of what was
        assert saver.is_under_way and saver.is_writing and saver.latest is None
        assert find(tmp_path) is None
        gate.set()
        saver.settle()
        assert not saver.is_under_way and saver.latest == find(tmp_path)
        assert read_manifest(saver.latest).training_state == progress(1, counts={"seen": 1})
        saver.settle()  # nothing is under way: nothing is done

    on_one_rank(work)


def test_the_next_and_the_last_save_wait_for_the_one_under_way(tmp_path, gate):
    def work(mesh):
        saver = saver_of(mesh, tmp_path, with_run(keep=9))
        saver.save(progress(1), is_last=False)
        threading.Timer(0.2, gate.set).start()
        saver.save(progress(2), is_last=False)
        assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000001"]
        saver.save(progress(3), is_last=True)
        assert len(list(tmp_path.glob("step-*"))) == 3 and not saver.is_under_way

    on_one_rank(work)


def test_a_rank_that_cannot_write_fails_the_save_on_all_and_the_next_one_is_made(tmp_path, monkeypatch, caplog):
    write = checkpoint.write_part

    def write_or_fail(writing, snapshot):
        if snapshot.file == "state-00001.safetensors" and snapshot.manifest.training_state.step == 2:
            raise CheckpointError("no space left")
        return write(writing, snapshot)

    monkeypatch.setattr(checkpoint, "write_part", write_or_fail)

    def work(mesh):
        saver = saver_of(mesh, tmp_path)
        for step in (1, 2):
            saver.save(progress(step), is_last=False)
            saver.settle()
        latest = [saver.latest]
        mesh.gather_objects(None)
        latest += [find(tmp_path), list(tmp_path.glob(".*"))]
        mesh.gather_objects(None)
        saver.save(progress(3), is_last=False)
        saver.settle()
        return [*latest, saver.latest.name]

    for latest, found, left, last in on_ranks((1, 2, 1, 1), work):
        assert latest == found == tmp_path / "step-00000001" and left == [] and last == "step-00000003"
    assert "step 2 was not saved: no space left (rank 1)" in caplog.text


def test_a_last_save_that_fails_is_an_error(tmp_path, monkeypatch):
    def fail(writing, snapshot):
        raise CheckpointError("no space left")

    monkeypatch.setattr(checkpoint, "write_part", fail)

    def work(mesh):
        saver = saver_of(mesh, tmp_path)
        with pytest.raises(CheckpointError, match="no space left"):
            saver.save(progress(1), is_last=True)

    on_one_rank(work)


def test_without_it_a_save_is_there_at_once(tmp_path):
    def work(mesh):
        saver = saver_of(mesh, tmp_path, with_run(async_save=False))
        saver.save(progress(1), is_last=False)
        assert not saver.is_under_way and saver.latest == find(tmp_path)

    on_one_rank(work)


def test_closing_leaves_what_is_under_way(tmp_path, gate):
    def work(mesh):
        saver = saver_of(mesh, tmp_path)
        saver.save(progress(1), is_last=False)
        saver.close()
        assert find(tmp_path) is None
        gate.set()
        again = saver_of(mesh, tmp_path)
        saver._writer.shutdown(wait=True)
        again.save(progress(2), is_last=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002"]

    on_one_rank(work)


def ending_with_an_error(folder, failing, together=None, config=CONFIG):
    """A rank whose loop ends with an error while a save is under way; one that is not ``failing`` stands still."""

    def work(mesh):
        saver = saver_of(mesh, folder, config)
        saver.save(progress(1), is_last=False)
        if mesh.rank not in failing:
            assert together.wait(20)
        else:
            with pytest.raises(ValueError, match="an error"), saver.finishing():
                raise ValueError("an error in the loop")
            together.set()
        return saver.is_under_way, saver.latest

    return work


@pytest.mark.parametrize(("ranks", "failing"), [(1, {0}), (2, {0}), (2, {1}), (3, {1, 2}), (2, {0, 1})])
def test_an_error_finishes_what_is_under_way(tmp_path, gate, caplog, ranks, failing):
    """Whoever has it first: others may stand in a collective, or have an error too."""
    threading.Timer(0.2, gate.set).start()
    results = on_ranks((1, ranks, 1, 1), ending_with_an_error(tmp_path, failing, threading.Event()))
    path = tmp_path / "step-00000001"
    assert verify(path).files.keys() == {"config.toml", *(f"state-{rank:05d}.safetensors" for rank in range(ranks))}
    assert [path for _, path in results].count(path) == 1
    assert [is_under_way for is_under_way, _ in results] == [rank not in failing for rank in range(ranks)]
    assert "not saved" not in caplog.text and caplog.text.count("an error ends the run") == (ranks > 1)


@pytest.mark.parametrize("problem", ["never comes", "no space left"])
def test_a_save_that_cannot_be_finished_after_an_error_is_given_up_and_said(tmp_path, monkeypatch, caplog, problem):
    write, together = checkpoint.write_part, threading.Event()

    def write_or_not(writing, snapshot):
        if snapshot.file == "state-00000.safetensors":
            if problem != "never comes":
                raise CheckpointError(problem)
            assert together.wait(20)
        return write(writing, snapshot)

    monkeypatch.setattr(checkpoint, "write_part", write_or_not)
    config = with_run(stall_timeout=0.6)
    began = time.monotonic()
    results = on_ranks((1, 2, 1, 1), ending_with_an_error(tmp_path, {1}, together, config))
    assert time.monotonic() - began < 10 and results == [(True, None), (False, None)]
    said = "waited 0.3 s in vain for save 1 of rank 0" if problem == "never comes" else problem
    assert f"step 1 was not saved: {said}" in caplog.text and find(tmp_path) is None


@pytest.fixture
def full_disk(monkeypatch):
    """A list of errors: each takes the place of one writing."""
    refusals, write = [], checkpoint.write_part

    def write_or_fail(writing, snapshot):
        if refusals:
            raise DiskError(f"{writing}: cannot be written: {refusals.pop()}")
        return write(writing, snapshot)

    monkeypatch.setattr(checkpoint, "write_part", write_or_fail)
    monkeypatch.setattr(saving, "RETRY_SECONDS", 0.01)
    return refusals


def test_a_last_save_is_tried_again_while_the_disk_refuses_it(tmp_path, full_disk, caplog):
    beats = []

    def work(mesh):
        full_disk.extend(["No space left on device"] * 3)
        model, optimizer = model_part(mesh, "compact", CONFIG, 5)
        Saver(tmp_path, with_run(save_patience=60.0), mesh, model, optimizer, lambda: beats.append(1)).save(
            progress(1), is_last=True
        )

    on_one_rank(work)
    assert find(tmp_path) and len(beats) == 3 and caplog.text.count("tried again for 60 s") == 1


def test_a_last_save_that_a_disk_never_takes_ends_with_the_folder(tmp_path, full_disk):
    def work(mesh):
        full_disk.extend(["No space left on device"] * 10_000)
        with pytest.raises(DiskError, match=f"{tmp_path}.*No space left"):
            saver_of(mesh, tmp_path, with_run(save_patience=0.05)).save(progress(1), is_last=True)
        assert list(tmp_path.iterdir()) == []

    on_one_rank(work)
    assert 0 < len(full_disk) < 10_000 - 1


@pytest.mark.parametrize(("patience", "again"), [(0.05, True), (0.0, False)])
def test_another_save_is_made_up_for_before_the_next_is_due(tmp_path, full_disk, patience, again):
    def work(mesh):
        saver = saver_of(mesh, tmp_path, with_run(save_patience=patience))
        full_disk.append("No space left on device")
        saver.save(progress(1), is_last=False)
        saver.settle()
        assert saver.latest is None and not (again and saver.is_overdue)
        time.sleep(0.06)
        assert saver.is_overdue == again
        saver.save(progress(2), is_last=False)
        saver.settle()
        assert saver.latest == find(tmp_path) and not saver.is_overdue

    on_one_rank(work)


def test_a_save_that_gets_on_says_so_and_one_that_stands_still_does_not(tmp_path, monkeypatch):
    """A disk that takes a piece now and then, and one that takes nothing for as long."""
    monkeypatch.setattr(saving, "LOOK_SECONDS", 0.01)
    beats, counted, write = [], [], checkpoint.write_part

    def write_slowly(writing, snapshot):
        for number in range(5):
            (writing / snapshot.file).write_bytes(bytes(number))
            time.sleep(0.05)
        counted.append(len(beats))
        time.sleep(0.3)
        counted.append(len(beats))
        (writing / snapshot.file).unlink()
        return write(writing, snapshot)

    @contextmanager
    def working(phase):
        yield lambda: beats.append(phase)

    monkeypatch.setattr(checkpoint, "write_part", write_slowly)

    def work(mesh):
        mesh.working = working
        saver_of(mesh, tmp_path).save(progress(1), is_last=True)

    on_one_rank(work)
    moving, standing = counted[0], counted[1] - counted[0]
    assert moving >= 3 and standing <= 1 and set(beats) == {"writing"}


def test_what_is_read_says_that_it_gets_on(tmp_path, monkeypatch):
    monkeypatch.setattr(fragments, "_CHUNK", 256)
    beats = []

    @contextmanager
    def working(phase):
        assert phase == "reading"
        yield lambda: beats.append(phase)

    def work(mesh):
        saver_of(mesh, tmp_path).save(progress(1), is_last=True)
        mesh.working = working
        path = find(tmp_path, "", mesh)
        hashed = len(beats)
        assert hashed >= sum(file.size for file in read_manifest(path).files.values()) // 256
        model, optimizer = model_part(mesh, "compact", CONFIG, 5)
        checkpoint.load(path, CONFIG, mesh, model, optimizer, verified=True)
        assert len(beats) - hashed == len(weights_of(model))

    on_one_rank(work)
