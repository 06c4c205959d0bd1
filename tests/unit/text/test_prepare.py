"""Preparing: what comes out, that it is whole or not there, and that it goes on where it stopped."""

import contextlib
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest

from nt_dist.errors import ConfigError, DataError, RunError
from nt_dist.text import chunks, prepare
from nt_dist.text.communicator import Communicator, open_communicator
from nt_dist.text.indexed import IndexedTokens
from nt_dist.text.prepare import choose_validation, prepare_data
from nt_dist.text.tokenizer import load_tokenizer
from tests.unit.text.data_case import config_over, files_under, sentences, write_jsonl

TEXTS = [sentences(8, seed) for seed in range(40)]
INDEXED = ["train.bin", "train.idx", "validation.bin", "validation.idx"]
BLOCKS = [f"{name}.blocks" for name in INDEXED]
WHOLE = ["origin.json", "prepared.json", "tokenizer.model", *sorted([*INDEXED, *BLOCKS])]


@pytest.fixture
def config(tmp_path):
    return config_over(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl.gz", TEXTS)), validation=0.1)


def documents(folder, name):
    indexed = IndexedTokens(folder / name)
    tokenizer = load_tokenizer(folder / "tokenizer.model", 330)
    read = [indexed.document(number).tolist() for number in range(indexed.num_documents)]
    assert all(tokens[0] == tokenizer.bos and tokens[-1] == tokenizer.eos for tokens in read)
    return [tokenizer.decode(tokens) for tokens in read]


def test_a_share_of_the_documents_is_held_out(config):
    folder = prepare_data(config)
    train, validation = documents(folder, "train"), documents(folder, "validation")
    assert len(validation) == 4 and sorted(train + validation) == sorted(TEXTS)
    assert train == [text for text in TEXTS if text in train]
    assert validation == [text for text in TEXTS if text in validation]
    assert sorted(os.listdir(folder)) == WHOLE
    assert len(files_under(folder.parent)) == len(WHOLE) + 1  # and the kept tokenizer: no chunk is left
    record = json.loads((folder / "prepared.json").read_text())
    assert record["documents"] == {"train": 36, "validation": 4}
    assert record["tokens"]["train"] == IndexedTokens(folder / "train").num_tokens


def test_validation_texts_of_their_own(config, tmp_path):
    path = write_jsonl(tmp_path / "v.jsonl", TEXTS[:3])
    folder = prepare_data(config_over(tmp_path, path=config.data.path, validation=str(path)))
    assert documents(folder, "train") == TEXTS
    assert documents(folder, "validation") == TEXTS[:3]


def test_max_documents_bounds_training_only(config, tmp_path):
    path = write_jsonl(tmp_path / "v.jsonl", TEXTS[:3])
    folder = prepare_data(config_over(tmp_path, path=config.data.path, validation=str(path), max_documents=2))
    assert (documents(folder, "train"), documents(folder, "validation")) == (TEXTS[:2], TEXTS[:3])


def test_a_second_time_nothing_is_done(config, monkeypatch):
    folder = prepare_data(config)
    before = {name: (folder / name).stat().st_mtime_ns for name in WHOLE}
    monkeypatch.setattr(prepare, "train_tokenizer", None)
    monkeypatch.setattr(prepare, "tokenize", None)
    assert prepare_data(config) == folder
    assert {name: (folder / name).stat().st_mtime_ns for name in WHOLE} == before


@pytest.mark.parametrize(
    "change",
    [{"validation": 0.2}, {"max_documents": 30}, {"text_key": "title"}, {"path": "b.jsonl"}, {"vocab_size": 331}],
)
def test_other_settings_are_other_data(config, tmp_path, change):
    """Without overwriting what another run reads."""
    records = [json.dumps({"text": text, "title": text.upper()}) for text in TEXTS[1:]]
    (tmp_path / "b.jsonl").write_text("\n".join(records))
    first = prepare_data(config)
    settings = {"path": str(tmp_path / "b.jsonl")} if {"text_key", "path"} & set(change) else {"path": config.data.path}
    settings |= {"validation": 0.1} | {key: value for key, value in change.items() if key != "path"}
    second = prepare_data(config_over(tmp_path, **settings))
    assert first != second and sorted(os.listdir(first)) == WHOLE


def test_changed_texts_are_prepared_again_where_that_is_asked_for(config, tmp_path):
    """By removing what was prepared; else that is used, with a warning (test_origin.py)."""
    first = prepare_data(config)
    write_jsonl(tmp_path / "a.jsonl.gz", TEXTS[:30])
    assert prepare_data(config) == first and len(documents(first, "train")) == 36
    shutil.rmtree(first)
    assert len(documents(prepare_data(config), "train")) == 27


def test_corpora_that_look_alike_are_other_data(tmp_path):
    """Equal in their files' names, sizes and times."""
    found = []
    for number, name in enumerate(("one", "two")):
        file = tmp_path / name / "a.jsonl"
        file.parent.mkdir()
        write_jsonl(file, [text.upper() if number else text for text in TEXTS])
        os.utime(file, ns=(0, 0))
        found.append(prepare_data(config_over(tmp_path, path=str(file))))
    assert found[0] != found[1] and documents(found[1], "train")[0].isupper()


def test_sequence_length_and_layout_do_not_matter(config, tmp_path):
    other = config_over(tmp_path, path=config.data.path, validation=0.1, layout="rows", sequence_length=32)
    assert prepare_data(config) == prepare_data(other)


def test_it_goes_on_where_it_stopped(config, monkeypatch):
    """The disk fills up after two chunks; the next start makes the others only, and the same files come out."""
    monkeypatch.setattr(chunks, "_SMALLEST", 3000)
    write, written = chunks.write_chunk, []

    def until_full(path, texts, tokenizer, is_chat):
        if len(written) == 2:
            raise DataError(f"{path}: cannot be written: No space left on device")
        write(path, texts, tokenizer, is_chat)
        written.append(path.name)

    monkeypatch.setattr(chunks, "write_chunk", until_full)
    with pytest.raises(DataError, match="No space left"):
        prepare_data(config)
    folder = prepare.prepared_folder(config)
    kept = [name for name in files_under(folder) if not name.startswith("tokenizer")]
    assert len(kept) == 2 and all(".partial/train-" in name for name in kept)

    later = []
    monkeypatch.setattr(chunks, "write_chunk", lambda *chunk: (write(*chunk), later.append(chunk[0].name)))
    final = prepare_data(config)
    assert later and not set(later) & set(written)
    assert sorted(documents(final, "train") + documents(final, "validation")) == sorted(TEXTS)


def test_a_run_stopped_while_joining_leaves_nothing_under_the_final_name(config, monkeypatch):
    monkeypatch.setattr(prepare.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(DataError, match="cannot be written: Read-only file system"):
        prepare_data(config)
    names = files_under(prepare.prepared_folder(config))
    assert all(name.endswith((".npz", ".model")) for name in names)
    monkeypatch.undo()
    assert sorted(os.listdir(prepare_data(config))) == WHOLE


def test_processes_give_the_same_files(config, tmp_path, monkeypatch):
    alone = prepare_data(config)
    monkeypatch.setattr(chunks, "_SMALLEST", 3000)
    pool = config_over(tmp_path / "two", path=config.data.path, validation=0.1, num_workers=2)
    together = prepare_data(pool)
    for name in WHOLE:
        assert (alone / name).read_bytes() == (together / name).read_bytes(), name


@pytest.mark.parametrize("damage", ["truncated", "empty", "binary", "wrong line", "missing"])
@pytest.mark.parametrize("which", ["train", "validation"])
def test_bad_input_leaves_nothing_behind(tmp_path, damage, which):
    good, bad = write_jsonl(tmp_path / "good.jsonl.gz", TEXTS), write_jsonl(tmp_path / "bad.jsonl.gz", TEXTS)
    data, message = {
        "truncated": (bad.read_bytes()[:-200], "the compressed file is truncated"),
        "empty": (b"", "is empty"),
        "binary": (bytes(range(256)), "bad.jsonl.gz: is no .gz file"),
        "wrong line": (b"", "bad.jsonl, line 30: is not JSON"),
        "missing": (b"", "no such file or folder"),
    }[damage]
    bad.write_bytes(data)
    if damage == "wrong line":
        bad = write_jsonl(tmp_path / "bad.jsonl", TEXTS)
        bad.write_text("\n".join([*bad.read_text().splitlines()[:29], '{"text"', "{}"]))
    elif damage == "missing":
        bad.unlink()
    paths = {"path": str(bad), "validation": str(good)}
    if which == "validation":
        paths = {"path": str(good), "validation": str(bad)}
    with pytest.raises(DataError, match=message):
        prepare_data(config_over(tmp_path, **paths))
    left = files_under(tmp_path / "run") if (tmp_path / "run").exists() else []
    assert not [name for name in left if not name.startswith("data/tokenizer-")]
    assert not list((tmp_path / "run").glob("data/*.partial"))


def test_a_tokenizer_of_another_size_is_refused_before_anything_is_written(config, tmp_path):
    (kept,) = prepare_data(config).parent.glob("tokenizer-*.model")
    other = config_over(tmp_path / "b", 500, path=config.data.path, tokenizer=str(kept))
    with pytest.raises(DataError, match=r"tokenizer-.*.model' has 330 pieces, model.vocab_size = 500"):
        prepare_data(other)
    assert not (tmp_path / "b").exists()


def test_a_path_that_is_missing_in_the_config_is_a_config_error(tmp_path):
    with pytest.raises((ConfigError, DataError), match="data.path"):
        prepare_data(config_over(tmp_path, path=""))


def test_a_folder_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"run.*: cannot be written: (Not a directory|File exists)"):
        prepare_data(config)


def test_permissions_are_the_umask(config):
    before = os.umask(0o027)
    try:
        folder = prepare_data(config)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    for path in [*folder.iterdir(), *folder.parent.glob("tokenizer-*.model")]:
        assert path.stat().st_mode & 0o777 == 0o640, path


def test_two_at_once_prepare_once(config, monkeypatch):
    calls, tokenize = [], prepare.tokenize

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.3)  # time for the other to come
        return tokenize(*arguments)

    monkeypatch.setattr(prepare, "tokenize", slow)
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(prepare_data(config))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(folders) == 2 and folders[0] == folders[1] and len(calls) == 1


def test_choose_validation_follows_the_content():
    hashes = chunks.hash_texts([f"text {number}" for number in range(1000)])
    held_out = choose_validation(hashes, 0.02)
    assert held_out.sum() == 20
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(choose_validation(hashes[order], 0.02), held_out[order])
    assert not np.array_equal(np.flatnonzero(held_out), np.arange(20))


@pytest.mark.parametrize(("count", "fraction", "wanted"), [(2, 0.02, 1), (2, 0.99, 1), (10, 0.96, 9), (30, 0.02, 1)])
def test_choose_validation_leaves_both_sides_something(count, fraction, wanted):
    assert choose_validation(np.arange(count, dtype=np.uint64), fraction).sum() == wanted


def test_choose_validation_refuses_one_document(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["".join(TEXTS)])
    with pytest.raises(DataError, match=r"data.validation = 0.02: .* the corpus has 1; give data.validation the path"):
        prepare_data(config_over(tmp_path, path=str(path)))


class Ranks:
    """COMM_WORLD of threads."""

    def __init__(self, size):
        self.size, self.values, self.barrier = size, [None] * size, threading.Barrier(size, timeout=30)

    def communicator(self, rank):
        class Communicator:
            Get_rank = staticmethod(lambda: rank)
            Get_size = staticmethod(lambda: self.size)

            @staticmethod
            def allgather(value):
                self.values[rank] = value
                self.barrier.wait()
                gathered = list(self.values)
                self.barrier.wait()
                return gathered

        return Communicator()


def on_ranks(size, work):
    """Run work(communicator) on every rank; gives results or exceptions."""
    ranks, results = Ranks(size), [None] * size

    def run(rank):
        try:
            results[rank] = work(Communicator(ranks.communicator(rank)))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_mpi_ranks_give_the_same_files(config, tmp_path, monkeypatch):
    alone = prepare_data(config)
    monkeypatch.setattr(chunks, "_SMALLEST", 3000)
    shared = config_over(tmp_path / "ranks", path=config.data.path, validation=0.1)
    made = []
    write = chunks.write_chunk
    monkeypatch.setattr(chunks, "write_chunk", lambda *chunk: (made.append(threading.get_ident()), write(*chunk)))
    folders = on_ranks(3, lambda communicator: prepare_data(shared, communicator))
    assert len(set(folders)) == 1 and len(set(made)) == 3
    for name in WHOLE:
        assert (alone / name).read_bytes() == (folders[0] / name).read_bytes(), name


def test_mpi_ranks_fail_together(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    path.write_text(path.read_text() + "{")
    errors = on_ranks(2, lambda communicator: prepare_data(config_over(tmp_path, path=str(path)), communicator))
    assert [type(error) for error in errors] == [DataError] * 2
    assert all("a.jsonl, line 41: is not JSON" in str(error) for error in errors)


def test_one_mpi_rank_that_fails_stops_the_others(config):
    def work(communicator):
        if communicator.rank == 1:
            raise DataError("n1: no such file")
        return "fine"

    errors = on_ranks(3, lambda communicator: communicator.agree(lambda: work(communicator)))
    assert [str(error) for error in errors] == ["n1: no such file"] * 3


@pytest.mark.parametrize(("size", "message"), [("", None), ("1", None), ("x", "PMI_SIZE = 'x' must be a whole number")])
def test_what_mpi_has_left_behind_is_named(monkeypatch, size, message):
    monkeypatch.setenv("PMI_SIZE", size)
    with pytest.raises(RunError, match=message) if message else contextlib.nullcontext(), open_communicator() as alone:
        assert alone.size == 1
