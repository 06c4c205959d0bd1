"""Chunks: cut by the source alone, used again when they hold what they should, made by processes that leave none."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nt_dist.errors import DataError
from nt_dist.text import chunks
from nt_dist.text.chunks import Chunk, Patience, cut_into_chunks, hash_texts, read_chunk, tokenize
from nt_dist.text.communicator import Communicator
from nt_dist.text.sources import open_files
from nt_dist.text.tokenizer import Tokenizer, train_tokenizer
from tests.unit.text.data_case import sentences, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("texts") / "a.jsonl", [sentences(300)])
    return Tokenizer(train_tokenizer(open_files("data.path", str(path), None, "text"), 330), "it")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Four files of 10 documents of about 440 characters, in chunks of about 1,500 characters."""
    monkeypatch.setattr(chunks, "_SMALLEST", 1500)
    for name in "abcd":
        write_jsonl(tmp_path / f"texts/{name}.jsonl", [sentences(10, f"{name}{i}") for i in range(10)])
    return open_files("data.path", str(tmp_path / "texts"), "jsonl", "text")


@pytest.fixture(autouse=True)
def folders(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "chunks").mkdir()


class Rank(Communicator):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def all_texts(source):
    return [document.text for unit in range(len(source.sizes)) for document in source.documents(unit)]


def test_chunks_hold_all_documents_in_the_order_of_their_names(source):
    chunks = list(cut_into_chunks(source, "train", 0, Communicator()))
    names = [chunk.name for chunk in chunks]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert [text for chunk in chunks for text in chunk.texts] == all_texts(source)
    assert all(sum(map(len, chunk.texts[:-1])) < 1500 for chunk in chunks)
    positions = [chunk.position for chunk in chunks]
    assert positions == sorted(positions) and positions[-1] == sum(source.sizes)


@pytest.mark.parametrize(("size", "max_documents"), [(2, 0), (3, 0), (2, 17), (7, 0)])
def test_ranks_share_the_same_chunks(source, size, max_documents):
    alone = {chunk.name: chunk.texts for chunk in cut_into_chunks(source, "train", max_documents, Communicator())}
    shared = [
        {chunk.name: chunk.texts for chunk in cut_into_chunks(source, "train", max_documents, Rank(rank, size))}
        for rank in range(size)
    ]
    assert sum(map(len, shared)) == len(alone)
    assert {name: texts for rank in shared for name, texts in rank.items()} == alone
    assert sum(map(bool, shared)) > 1


def test_ranks_with_enough_files_read_their_own_only(source):
    assert len(source.sizes) == 4
    source.files[1].unlink()  # rank 1's
    assert list(cut_into_chunks(source, "train", 0, Rank(0, 2)))
    with pytest.raises(DataError, match="b.jsonl: cannot be read"):
        list(cut_into_chunks(source, "train", 0, Rank(1, 2)))


def test_small_files_share_a_chunk(source, monkeypatch):
    monkeypatch.setattr(chunks, "_SMALLEST", 14_400)
    assert len(list(cut_into_chunks(source, "train", 0, Communicator()))) == 2


@pytest.mark.parametrize("count", [1, 5, 10, 11, 40, 99])
def test_max_documents_is_exact(source, count):
    texts = [text for chunk in cut_into_chunks(source, "train", count, Communicator()) for text in chunk.texts]
    assert texts == all_texts(source)[:count]


def make(source, folder, tokenizer, processes=0):
    wanted = list(cut_into_chunks(source, "train", 0, Communicator()))
    done = list(tokenize(iter(wanted), folder, tokenizer, processes))
    assert done == wanted
    return [chunk.name for chunk in done]


@pytest.mark.parametrize("processes", [0, 2])
def test_chunks_hold_their_documents_tokens(source, tmp_path, tokenizer, processes):
    names = make(source, tmp_path / "chunks", tokenizer, processes)
    read = [read_chunk(tmp_path / "chunks" / f"{name}.npz") for name in names]
    documents = []
    for chunk in read:
        documents += [tokens.tolist() for tokens in np.split(chunk.tokens, np.cumsum(chunk.lengths)[:-1])]
    assert documents == [tokenizer.document(text) for text in all_texts(source)]
    assert np.array_equal(np.concatenate([chunk.hashes for chunk in read]), hash_texts(all_texts(source)))
    assert sorted(os.listdir(tmp_path / "chunks")) == [f"{name}.npz" for name in names]
    assert not multiprocessing.active_children()


def test_done_chunks_are_used_again_and_damaged_or_other_ones_are_not(source, tmp_path, tokenizer):
    folder = tmp_path / "chunks"
    names = make(source, folder, tokenizer)
    contents = {name: (folder / f"{name}.npz").read_bytes() for name in names}
    inodes = {name: (folder / f"{name}.npz").stat().st_ino for name in names}
    flipped = bytearray(contents[names[1]])
    flipped[len(flipped) // 3] ^= 1
    (folder / f"{names[1]}.npz").write_bytes(flipped)
    (folder / f"{names[2]}.npz").write_bytes(contents[names[2]][:-30])
    (folder / f"{names[3]}.npz").write_bytes(contents[names[4]])  # whole, of other texts
    (folder / f"{names[5]}.npz").unlink()
    assert make(source, folder, tokenizer) == names
    again = {name: (folder / f"{name}.npz").stat().st_ino for name in names}
    for place, name in enumerate(names):
        chunk, kept = read_chunk(folder / f"{name}.npz"), again[name] == inodes[name]
        assert np.array_equal(chunk.hashes, hash_texts(chunk_texts(source, place)))
        assert kept == (place not in (1, 2, 3, 5))


def chunk_texts(source, place):
    return list(cut_into_chunks(source, "train", 0, Communicator()))[place].texts


def test_a_damaged_chunk_is_named(source, tmp_path, tokenizer):
    name = make(source, tmp_path / "chunks", tokenizer)[0]
    path = tmp_path / "chunks" / f"{name}.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{name}.npz: cannot be read, or is damaged"):
        read_chunk(path)


def test_a_chunk_that_cannot_be_written_is_named_and_leaves_nothing(source, tmp_path, tokenizer, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks.np, "savez", full)
    with pytest.raises(DataError, match=r"train-000000-000000.npz: cannot be written: No space left"):
        make(source, tmp_path / "chunks", tokenizer)
    assert not os.listdir(tmp_path / "chunks")


def test_an_error_of_a_worker_comes_through(source, tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"nowhere/train-000000-000000.npz: cannot be written: No such file"):
        make(source, tmp_path / "nowhere", tokenizer, processes=1)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_an_error(tmp_path, tokenizer):
    def chunks():
        yield Chunk("train-0", ["one"], 1)
        for child in multiprocessing.active_children():
            child.kill()
        for number in range(1, 4):
            yield Chunk(f"train-{number}", ["two"], 2)

    with pytest.raises(DataError, match=r"a process that tokenizes died at part train-\d .*data.num_workers"):
        list(tokenize(chunks(), tmp_path / "chunks", tokenizer, 1))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("ends", ["by itself", "by a signal"])
def test_workers_that_stand_still_are_an_error_or_are_left_at_once(tmp_path, tokenizer, monkeypatch, ends):
    monkeypatch.setattr(chunks, "LOOK_SECONDS", 0.05)
    given = (Chunk(f"train-{number}", ["one"], 1 + number) for number in range(60))
    made = tokenize(given, tmp_path / "chunks", tokenizer, 1, Patience(2.0, 60.0))
    assert [next(made).name for _ in range(2)] == ["train-0", "train-1"]
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGSTOP)
    if ends == "by itself":
        with pytest.raises(DataError, match=r"have stood still for \d+ s at part train-\d+; what is done is kept"):
            list(made)
    else:
        made.close()  # as an exception of a signal's handler does
    assert not multiprocessing.active_children()


def test_workers_of_a_killed_parent_leave(tmp_path, tokenizer):
    (tmp_path / "it.model").write_bytes(tokenizer.data)
    script = f"""
import multiprocessing, os, time
from pathlib import Path
from nt_dist.text.chunks import Chunk, tokenize
from nt_dist.text.tokenizer import load_tokenizer
def chunks():
    for number in range(3):
        yield Chunk(f"train-{{number}}", ["one"], 1)
    while not list(Path("{tmp_path}/chunks").glob("*.npz")):
        time.sleep(0.05)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
    yield Chunk("late", ["x"], 1)
list(tokenize(chunks(), Path("{tmp_path}/chunks"), load_tokenizer("{tmp_path}/it.model", 330), 2))
"""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if _runs(pid)]


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
