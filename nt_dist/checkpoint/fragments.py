"""The files of a checkpoint: fragments written with their hash, and read with everything about them checked.

A state file is plain safetensors. It is written here rather than by that library so that the hash is of the bytes that
were meant (a hash of what was read back would call a torn write right), in one pass, without a second copy in memory,
with the ordinary errors of the operating system and the user's umask; it is read through the library.

Keys are "<weight>/<trail>/<shard>/<part>"; the parts are int32 positions (sparse weights only)
and those of :meth:`Manifest.states_of`, float32 values and moments, all 1-D and in ascending position.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from nt_dist.checkpoint.manifest import MANIFEST, Manifest, WeightEntry
from nt_dist.errors import CheckpointError, DiskError
from nt_dist.files import FileEntry, check_plain, write_new, writing

_DTYPES = {np.dtype(np.int32): "I32", np.dtype(np.float32): "F32"}
_CHUNK = 1 << 22


def topology_checksum(positions: np.ndarray) -> str:
    """Return 16 hex digits that stand for one shard's ``positions`` (int32 [slots]) in any layout and storage."""
    return hashlib.sha256(np.ascontiguousarray(positions, dtype="<i4").tobytes()).hexdigest()[:16]


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write ``chunks`` to a new file and see them on the disk, or raise a DiskError."""
    with writing(path, DiskError):
        return write_new(path, chunks)


def write_fragments(path: Path, tensors: Mapping[str, np.ndarray]) -> FileEntry:
    """Write ``tensors`` (1-D, int32 or float32) as one safetensors file; raises as :func:`write_file`."""
    assert sys.byteorder == "little", "safetensors is little-endian"
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in tensors.items():
        assert tensor.ndim == 1 and tensor.flags.c_contiguous, key
        begin, end = end, end + tensor.nbytes
        header[key] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of its elements' size
    pieces = (memoryview(tensor).cast("B") for tensor in tensors.values() if tensor.size)
    chunks = (piece[begin : begin + _CHUNK] for piece in pieces for begin in range(0, len(piece), _CHUNK))
    return write_file(path, chain([len(text).to_bytes(8, "little"), text], chunks))


def hash_file(path: Path, beat: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 (hex) of a file; ``beat`` is called with each piece of it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            beat()
    return digest.hexdigest()


def file_problems(
    checkpoint: Path,
    manifest: Manifest,
    share: int = 0,
    shares: int = 1,
    hashes: bool = True,
    beat: Callable[[], None] = lambda: None,
) -> list[str]:
    """Return what is wrong with a checkpoint's files, one message a file; without ``hashes``, of names and sizes only.

    Ranks divide the work: ``share`` is which part, of how many. ``beat`` is called as it gets on.
    """
    problems = []
    if share == 0:
        try:
            strangers = set(os.listdir(checkpoint)) - {MANIFEST, *manifest.files}
        except OSError as error:
            return [f"{checkpoint}: cannot be read: {error.strerror}"]
        rule = "not a file of this checkpoint; move it away"
        problems += [f"{checkpoint / name}: {rule}" for name in sorted(strangers)]
    for name, entry in sorted(manifest.files.items())[share::shares]:
        path = checkpoint / name
        try:
            check_plain(path)
            size = path.stat().st_size
            if size != entry.size:
                problems.append(f"{path}: damaged: {size} bytes instead of {entry.size}")
            elif hashes and hash_file(path, beat) != entry.sha256:
                problems.append(f"{path}: damaged: its SHA-256 is not the manifest's")
        except FileNotFoundError:
            problems.append(f"{path}: missing")
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
    return problems


class FragmentReader(ExitStack):
    """Reads fragments out of the checkpoint in a folder, opening each file when it is first needed."""

    def __init__(self, checkpoint: Path, manifest: Manifest):
        super().__init__()
        self._checkpoint, self.manifest = checkpoint, manifest
        self._open: dict[str, safe_open] = {}

    def read(self, name: str, trail: int, shard: int, states: Collection[str]) -> dict[str, np.ndarray]:
        """Return the parts of one fragment: positions (sparse weights only) and those of ``states``.

        Raises:
            CheckpointError: It is missing, or not what the manifest and the weight's shape say; names file and key.
        """
        entry = self.manifest.weights[name]
        key = f"{trail}/{shard}"
        fragment = entry.fragments[key]
        path = self._checkpoint / fragment.file
        parts = [*(["positions"] if entry.is_sparse else []), *states]
        found = {part: self._tensor(path, f"{name}/{key}/{part}") for part in parts}
        size = entry.slots[shard]
        for part, array in found.items():
            dtype = np.int32 if part == "positions" else np.float32
            problem = None
            if array.dtype != dtype or array.shape != (size,):
                problem = f"{array.dtype} {list(array.shape)} instead of {np.dtype(dtype).name} [{size}]"
            elif part == "positions":
                problem = _positions_problem(entry, shard, array, fragment.checksum)
            else:
                problem = values_problem(part, array)
            if problem:
                raise CheckpointError(f"{path}: {name}/{key}/{part}: {problem}")
        return found

    def _tensor(self, path: Path, key: str) -> np.ndarray:
        try:
            if path.name not in self._open:
                check_plain(path)
                self._open[path.name] = self.enter_context(safe_open(path, framework="np"))
            return self._open[path.name].get_tensor(key)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, or without {key}: {error}") from None


def _positions_problem(entry: WeightEntry, shard: int, positions: np.ndarray, checksum: str | None) -> str | None:
    if not positions.size:
        return None
    if positions.size > 1 and not (np.diff(positions.astype(np.int64)) > 0).all():
        return "not strictly ascending"
    if positions[0] < 0 or positions[-1] >= entry.shard_elements:
        return f"outside the shard's {entry.shard_elements} entries"
    length = entry.shape[entry.cut_axis] // entry.shards
    inner = math.prod(entry.shape[entry.cut_axis + 1 :])
    if ((positions // inner) % length).max() + shard * length >= entry.valid:
        return f"in the padding past entry {entry.valid} of axis {entry.cut_axis}"
    if topology_checksum(positions) != checksum:
        return f"topology checksum {topology_checksum(positions)}, in the manifest {checksum}"
    return None


def values_problem(part: str, array: np.ndarray) -> str | None:
    """Return what is wrong with values or moments, or None."""
    if not np.isfinite(array).all():
        return f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite"
    if part == "exp_avg_sq" and array.size and array.min() < 0:
        return "a second moment is negative"
    return None
