"""What is wrong with the files of a checkpoint is found, and named."""

import contextlib
import hashlib
import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from nt_dist.checkpoint import inspect as checkpoint_inspect
from nt_dist.checkpoint.folder import verify
from nt_dist.checkpoint.fragments import (
    file_problems,
    topology_checksum,
    write_file,
    write_fragments,
)
from nt_dist.checkpoint.manifest import MANIFEST, read_manifest
from nt_dist.errors import CheckpointError
from tests.unit.checkpoint.test_checkpoint import load_error, save_on

NAME = "blocks.1.mlp.down"  # in the trails, sparse
PADDED = "embedding"  # 30 rows of 32: the last shard's rows 6 and 7 are padding


@pytest.fixture
def path(tmp_path):
    """A whole checkpoint in three files of fragments."""
    return save_on(tmp_path, (1, 3, 1, 1))


def rewrite(path, change, name=NAME, key="1/2", with_checksum=True):
    """Let ``change`` edit one fragment's arrays, and make hashes and manifest fit: damage that only content shows."""
    manifest = read_manifest(path)
    fragment = manifest.weights[name].fragments[key]
    arrays = load_file(path / fragment.file)
    parts = {part: arrays[f"{name}/{key}/{part}"].copy() for part in ("positions", "value", "exp_avg", "exp_avg_sq")}
    change(parts)
    for part in [each for each in arrays if each.startswith(f"{name}/{key}/")]:
        del arrays[part]
    arrays |= {f"{name}/{key}/{part}": array for part, array in parts.items()}
    (path / fragment.file).unlink()
    manifest.files[fragment.file] = write_fragments(path / fragment.file, arrays)
    if with_checksum and "positions" in parts:
        checksum = topology_checksum(parts["positions"])
        manifest.weights[name].fragments[key] = replace(fragment, checksum=checksum)
    (path / MANIFEST).write_text(manifest.to_json())
    return path / fragment.file


def assert_named(path, *words):
    """Loading and examining both refuse the checkpoint with these words, and no hash has noticed anything."""
    verify(path)
    message = load_error(path)
    (problem,) = checkpoint_inspect.examine(path)
    for word in map(str, words):
        assert word in message and word in problem, (word, message, problem)


def set_at(part, index, value):
    def change(parts):
        parts[part][index] = value

    return change


def swap_positions(parts):
    parts["positions"][[0, 1]] = parts["positions"][[1, 0]]


def repeat_position(parts):
    parts["positions"][1] = parts["positions"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_positions, ["positions", "not strictly ascending"]),
        (repeat_position, ["positions", "not strictly ascending"]),
        (set_at("positions", 0, -1), ["positions", "outside the shard's 96 entries"]),
        (set_at("positions", -1, 96), ["positions", "outside the shard's 96 entries"]),
        (set_at("value", 3, np.nan), ["value", "1 of", "not finite"]),
        (set_at("exp_avg", 3, np.inf), ["exp_avg", "1 of", "not finite"]),
        (set_at("exp_avg_sq", 3, -1e-9), ["exp_avg_sq", "negative"]),
        (lambda parts: parts.update(value=parts["value"][:-1].copy()), ["value", "instead of float32"]),
        (lambda parts: parts.update(exp_avg=parts["positions"]), ["exp_avg", "int32"]),
        (lambda parts: parts.pop("positions"), ["positions", "damaged, or without"]),
    ],
)
def test_content_that_cannot_be_is_named(path, change, words):
    file = rewrite(path, change)
    assert_named(path, file, f"{NAME}/1/2", *words)


def test_a_position_in_the_padding_is_named(path):
    rewrite(path, set_at("positions", -1, 6 * 16), PADDED, "0/3")
    assert_named(path, "embedding/0/3/positions", "padding past entry 30 of axis 0")


def test_positions_that_do_not_match_the_manifests_checksum_are_named(path):
    def move(parts):
        free = set(range(96)) - set(parts["positions"].tolist())
        parts["positions"][0] = min(free)
        parts["positions"].sort()

    rewrite(path, move, with_checksum=False)
    assert_named(path, f"{NAME}/1/2/positions", "topology checksum")


def means_the_same(text, other):
    """Whether two manifests hold the same numbers: one may end in another 17th digit, or have an E for an e."""
    with contextlib.suppress(ValueError):
        return json.loads(text) == json.loads(other)
    return False


def test_every_flipped_bit_is_found(path):
    """One bit in a hundred places of every file."""
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(len(whole) // 100, 1)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            if file.name == MANIFEST and means_the_same(damaged, whole):
                continue
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=file.name):
                verify(path)
        file.write_bytes(whole)
    verify(path)


@pytest.mark.parametrize("length", [0, 1, 7, 100, -1])
def test_truncated_files_are_named(path, length):
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=file.name):
            verify(path)
        file.write_bytes(whole)


def test_missing_and_extra_files_are_named(path):
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(CheckpointError, match=rf"{file.name}: missing"):
            verify(path)
        file.write_bytes(whole)
    (path / "state-00009.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state-00009.safetensors: not a file of this checkpoint"):
        verify(path)


def test_all_problems_are_reported_together(path):
    for number in range(3):
        (path / f"state-0000{number}.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        verify(path)
    assert len(str(caught.value).splitlines()) == 3


def test_the_ranks_shares_cover_all_files(path):
    manifest = read_manifest(path)
    for file in manifest.files:
        (path / file).unlink()
    found = [problem for share in range(3) for problem in file_problems(path, manifest, share, 3)]
    assert sorted(found) == sorted(file_problems(path, manifest)) and len(found) == len(manifest.files)


def test_a_file_that_is_no_safetensors_is_named(path):
    """The manifest vouches for it, and yet."""
    manifest = read_manifest(path)
    file = path / "state-00001.safetensors"
    file.unlink()
    manifest.files[file.name] = write_file(file, [b"\xff" * 100])
    (path / MANIFEST).write_text(manifest.to_json())
    assert str(file) in load_error(path)


def test_fragments_are_plain_safetensors(tmp_path):
    tensors = {"a/0/0/positions": np.arange(5, dtype=np.int32), "ü": np.float32([1, -2]), "none": np.float32([])}
    entry = write_fragments(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and np.array_equal(found[key], tensor)
    text = (tmp_path / "x.safetensors").read_bytes()
    assert entry.size == len(text) and (8 + int.from_bytes(text[:8], "little")) % 8 == 0
    assert json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["__metadata__"] == {"format": "pt"}


def test_the_hash_is_of_what_was_meant(tmp_path):
    """Larger than one chunk, so that the pieces' order matters."""
    array = np.arange(3_000_000, dtype=np.int32)
    entry = write_fragments(tmp_path / "x", {"a": array})
    assert entry.sha256 == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    assert np.array_equal(load_file(tmp_path / "x")["a"], array)


def test_files_are_never_written_over_and_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_file(tmp_path / "x", [b"1"])
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    with pytest.raises(CheckpointError, match="x: cannot be written: File exists"):
        write_file(tmp_path / "x", [b"2"])
    assert (tmp_path / "x").read_bytes() == b"1"
