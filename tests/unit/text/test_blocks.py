"""Prepared files are what was prepared: found by a sample of their blocks, or by all."""

import hashlib

import numpy as np
import pytest

from nt_dist.errors import DataError
from nt_dist.files import FileEntry, write_new
from nt_dist.text import blocks
from nt_dist.text.blocks import BlockSums, check_blocks


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A file of 100 blocks and a part of one, of which a sample is 20, and its sums."""
    monkeypatch.setattr(blocks, "SIZE", 64)
    monkeypatch.setattr(blocks, "SAMPLED", 20)
    sums, chance = BlockSums(), np.random.default_rng(0)
    pieces = [chance.integers(1 << 16, size=size).astype("<u2") for size in (0, 1, 999, 32, 2000, 173)]
    files = {"a.bin": write_new(tmp_path / "a.bin", sums.passing(pieces))}
    files["a.bin.blocks"] = write_new(tmp_path / "a.bin.blocks", [sums.result()])
    assert files["a.bin"].size == 100 * 64 + 10 and files["a.bin.blocks"].size == 101 * 8
    return tmp_path / "a.bin", files


def change(path, begin, end):
    data = bytearray(path.read_bytes())
    data[begin:end] = bytes(255 - byte for byte in data[begin:end])
    path.write_bytes(data)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_file_as_it_was_written_passes(prepared, is_whole):
    check_blocks(*prepared, is_whole)


@pytest.mark.parametrize("place", [0, 64 * 50, 64 * 99 + 63, 64 * 100 + 9])
def test_every_changed_byte_is_found_where_all_is_compared(prepared, place):
    path, files = prepared
    change(path, place, place + 1)
    where = f"block {place // 64} of 101 \\(from byte {place // 64 * 64:,}\\)"
    with pytest.raises(DataError, match=f"a.bin: is not what was prepared: {where} is another"):
        check_blocks(path, files, True)


def test_a_sample_finds_a_file_of_which_half_is_another_and_in_time_a_single_block(prepared):
    path, files = prepared
    change(path, 64 * 50, 64 * 51)
    found = 0
    for _ in range(200):  # each draws anew
        try:
            check_blocks(path, files, False)
        except DataError:
            found += 1
    assert 10 < found < 100
    change(path, 64 * 40, 64 * 90)
    with pytest.raises(DataError, match="a.bin: is not what was prepared"):
        check_blocks(path, files, False)


def test_changed_sums_are_named(prepared):
    path, files = prepared
    change(path.with_name("a.bin.blocks"), 3, 4)
    with pytest.raises(DataError, match="a.bin.blocks: is damaged"):
        check_blocks(path, files, False)


@pytest.mark.parametrize(("size", "is_whole", "found"), [(64, False, True), (6400, True, True), (6400, False, False)])
def test_without_sums_a_small_file_is_compared_as_a_whole(prepared, size, is_whole, found):
    path = prepared[0].with_name("old.bin")
    path.write_bytes(bytes(size))
    files = {"old.bin": FileEntry(size, hashlib.sha256(b"another").hexdigest())}
    if found:
        with pytest.raises(DataError, match="old.bin: is not what was prepared: its SHA-256 is another"):
            check_blocks(path, files, is_whole)
    else:
        check_blocks(path, files, is_whole)
