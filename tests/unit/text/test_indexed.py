"""The indexed dataset: megatron-core reads what we write, and damage is named."""

import hashlib
import os

import numpy as np
import pytest

from nt_dist.errors import DataError
from nt_dist.files import FileEntry
from nt_dist.text.indexed import IndexedTokens, write_indexed

DOCUMENTS = [[1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 10, 11, 2]]


def write(folder, documents=DOCUMENTS, vocab_size=300):
    parts = [
        (np.concatenate(group), np.array([len(document) for document in group], dtype=np.int64))
        for group in (documents[:2], documents[2:])
    ]
    files = write_indexed(folder / "train", vocab_size, parts)
    names = ("train.bin", "train.idx", "train.bin.blocks", "train.idx.blocks")
    contents = {name: (folder / name).read_bytes() for name in names}
    assert files == {name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    return folder / "train"


@pytest.mark.parametrize(("vocab_size", "kind"), [(300, np.uint16), (65499, np.uint16), (65500, np.int32)])
def test_megatron_reads_it(tmp_path, vocab_size, kind):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(write(tmp_path, vocab_size=vocab_size)))
    assert [document.tolist() for document in dataset] == DOCUMENTS
    assert dataset[0].dtype == kind
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]


def test_it_reads_what_it_wrote(tmp_path):
    indexed = IndexedTokens(write(tmp_path))
    assert (indexed.num_documents, indexed.num_tokens) == (3, 13)
    assert [indexed.document(number).tolist() for number in range(3)] == DOCUMENTS
    assert indexed.document(2, limit=4).tolist() == DOCUMENTS[2][:4]
    assert indexed.tokens(3, 5).tolist() == [2, 1, 7, 2, 1]


def damage(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".bin", lambda data: data[:-2], "train.bin: 24 bytes, must be 26"),
        (".bin", lambda data: data + b"\0\0", "train.bin: 28 bytes, must be 26"),
        (".idx", lambda data: data[:-1], "train.idx: .* cut short"),
        (".idx", lambda data: data[:20], "train.idx: .* less than the header"),
        (".idx", lambda data: b"X" + data[1:], "train.idx: is not the index"),
        (".idx", lambda data: data[:9] + b"\2" + data[10:], "train.idx: is not the index"),
        (".idx", lambda data: data[:17] + b"\7" + data[18:], "train.idx: is not the index"),
        (".idx", lambda data: data[:26] + b"\7" + data[27:], "train.idx: has 3 sequences for 6 documents"),
        (".idx", lambda data: data[:34] + b"\5" + data[35:], "train.idx: is damaged"),
        (".idx", lambda data: data[:46] + b"\2" + data[47:], "train.idx: is damaged"),
        (".idx", lambda data: data[:54] + b"\1" + data[55:], "train.idx: is damaged"),
    ],
)
def test_damage_is_named(tmp_path, suffix, change, message):
    prefix = write(tmp_path)
    damage(prefix.with_suffix(suffix), change)
    with pytest.raises(DataError, match=message):
        IndexedTokens(prefix)


def test_a_missing_file_is_named(tmp_path):
    prefix = write(tmp_path)
    prefix.with_suffix(".bin").unlink()
    with pytest.raises(DataError, match="train.bin: cannot be read: No such file"):
        IndexedTokens(prefix)


def test_a_file_cut_while_in_use_is_an_error(tmp_path):
    indexed = IndexedTokens(write(tmp_path))
    os.truncate(tmp_path / "train.bin", 10)
    assert indexed.tokens(0, 5).tolist() == [1, 5, 6, 2, 1]
    with pytest.raises(DataError, match="train.bin: ends before byte 12"):
        indexed.tokens(0, 6)


def test_files_are_closed_with_their_reader(tmp_path):
    prefix = write(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        IndexedTokens(prefix)
    assert len(os.listdir("/proc/self/fd")) == before
