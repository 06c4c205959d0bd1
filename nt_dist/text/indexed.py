"""megatron-core's indexed dataset, written and read: documents of tokens in a ``.bin`` and their index in an ``.idx``.

    .idx  "MMIDIDX\\0\\0", version 1 (uint64), type code (uint8), sequences N (uint64), documents D (uint64),
          N lengths (int32, tokens), N offsets (int64, bytes in the .bin), D document ends (int64; 0 first)
    .bin  tokens one after the other: uint16 (code 8) in a vocabulary below 65,500, else int32 (code 4)

The format is that of megatron/core/datasets/indexed_dataset.py (0.16.1), whose reader checks by assert only. Here each
document is one sequence. Files are read with pread, not mapped: a file cut short under a running job is then an error
that names it, not a SIGBUS.
"""

import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from nt_dist.errors import DataError
from nt_dist.files import FileEntry, check_plain, reading, write_new
from nt_dist.text.blocks import BLOCKS, BlockSums

_MAGIC = b"MMIDIDX"
_HEADER = np.dtype("S9, <u8, u1, <u8, <u8")
_CODES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_LENGTH, _OFFSET = np.dtype("<i4"), np.dtype("<i8")
_BLOCK = 1 << 20
MASK = ".mask"  # beside a .bin of which only some tokens count in the loss: a bit for each, its own format


def token_type(vocab_size: int) -> np.dtype:
    """The type that tokens are stored in, by megatron-core's rule."""
    return _CODES[8] if vocab_size < 65500 else _CODES[4]


def write_mask(path: Path, masks: Iterable[np.ndarray]) -> dict[str, FileEntry]:
    """Write which tokens count, given some at a time, a bit each; and the sums of its blocks."""

    def packed() -> Iterator[np.ndarray]:
        rest = np.zeros(0, dtype=bool)
        for mask in masks:
            bits = np.concatenate([rest, mask])
            whole = len(bits) // 8 * 8
            rest = bits[whole:]
            yield np.packbits(bits[:whole], bitorder="little")
        yield np.packbits(rest, bitorder="little")

    sums, name = BlockSums(), path.name + BLOCKS
    written = write_new(path, sums.passing(packed()))
    return {path.name: written, name: write_new(path.with_name(name), [sums.result()])}


def write_indexed(
    prefix: Path, vocab_size: int, documents: Iterable[tuple[np.ndarray, np.ndarray]]
) -> dict[str, FileEntry]:
    """Write ``<prefix>.bin`` and ``<prefix>.idx``, synced to disk, of documents that come some at a time: all their
    tokens [sum(lengths)], and how many each has [documents]; and the sums of their blocks (blocks.py)."""
    kind, parts = token_type(vocab_size), [np.zeros(0, dtype=_LENGTH)]

    def tokens() -> Iterator[np.ndarray]:
        for tokens, lengths in documents:
            assert len(tokens) == lengths.sum()
            parts.append(lengths.astype(_LENGTH))
            yield np.ascontiguousarray(tokens, dtype=kind)

    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    bin_sums, idx_sums = BlockSums(), BlockSums()
    written = write_new(bin_path, bin_sums.passing(tokens()))
    lengths = np.concatenate(parts)
    count, ends = len(lengths), np.cumsum(lengths, dtype=_OFFSET)
    code = next(code for code, stored in _CODES.items() if stored == kind)
    header = np.array([(_MAGIC, 1, code, count, count + 1)], dtype=_HEADER)
    offsets = (ends - lengths) * kind.itemsize
    parts = [header, lengths, offsets, np.arange(count + 1, dtype=_OFFSET)]
    index = write_new(idx_path, idx_sums.passing(parts))
    files = {bin_path.name: written, idx_path.name: index}
    for path, sums in ((bin_path, bin_sums), (idx_path, idx_sums)):
        name = path.name + BLOCKS
        files[name] = write_new(path.with_name(name), [sums.result()])
    return files


class IndexedTokens:
    """Read ``<prefix>.bin`` and ``<prefix>.idx``; all is checked on opening; a DataError names the file at fault."""

    def __init__(self, prefix: Path):
        self.bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        self._bin, self._idx = _File(self.bin_path), _File(idx_path)
        size = self._idx.size
        if size < _HEADER.itemsize:
            raise DataError(f"{idx_path}: {size} bytes are less than the header of an indexed dataset")
        magic, version, code, sequences, documents = self._idx.read(0, _HEADER, 0, 1)[0].item()
        if magic != _MAGIC or version != 1 or code not in _CODES:
            raise DataError(f"{idx_path}: is not the index of an indexed dataset of tokens (version 1)")
        if documents != sequences + 1:
            raise DataError(f"{idx_path}: has {sequences} sequences for {documents - 1} documents; must be equal")
        expected = _HEADER.itemsize + sequences * (_LENGTH.itemsize + _OFFSET.itemsize) + documents * _OFFSET.itemsize
        if size != expected:
            raise DataError(f"{idx_path}: {size} bytes, must be {expected} for {sequences} documents: is it cut short?")
        self._type = _CODES[code]
        self.num_documents: int = sequences
        end = 0  # bytes of the .bin that the documents so far take
        for first in range(0, sequences, _BLOCK):
            lengths, offsets = self._index(first, min(_BLOCK, sequences - first))
            ends = end + np.cumsum(lengths, dtype=_OFFSET) * self._type.itemsize
            if lengths.min() < 1 or offsets[0] != end or not np.array_equal(offsets[1:], ends[:-1]):
                raise DataError(f"{idx_path}: is damaged: offsets and lengths of its documents do not agree")
            end = int(ends[-1])
        if self._bin.size != end:
            size = self._bin.size
            raise DataError(f"{self.bin_path}: {size} bytes, must be {end} by {idx_path.name}: is it cut short?")
        self.num_tokens = end // self._type.itemsize
        mask = self.bin_path.with_suffix(MASK)
        self._mask = _File(mask) if mask.exists() else None
        if self._mask and self._mask.size != -(-self.num_tokens // 8):
            raise DataError(f"{mask}: {self._mask.size} bytes, must be a bit for each of {self.num_tokens} tokens")

    @property
    def is_masked(self) -> bool:
        """Whether only some of the tokens count in the loss."""
        return self._mask is not None

    def counts(self, start: int, count: int) -> np.ndarray:
        """Which of ``count`` tokens from ``start`` on count in the loss, bool. [count]"""
        first, last = start // 8, -(-(start + count) // 8)
        bits = np.unpackbits(self._mask.read(0, np.dtype(np.uint8), first, last - first), bitorder="little")
        return bits[start - 8 * first :][:count].astype(bool)

    def _index(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Lengths (tokens) and offsets (bytes) of documents. [count], [count]"""
        lengths = _HEADER.itemsize
        offsets = lengths + self.num_documents * _LENGTH.itemsize
        return self._idx.read(lengths, _LENGTH, first, count), self._idx.read(offsets, _OFFSET, first, count)

    def tokens(self, start: int, count: int) -> np.ndarray:
        """``count`` tokens of all documents one after the other, int64. [count]"""
        assert start >= 0 and start + count <= self.num_tokens
        return self._bin.read(0, self._type, start, count).astype(np.int64)

    def document(self, number: int, limit: int | None = None) -> np.ndarray:
        """The tokens of one document, the first ``limit`` at most, int64."""
        return self.tokens(*self.place(number, limit))

    def place(self, number: int, limit: int | None = None) -> tuple[int, int]:
        """Where the tokens of a document begin, and how many it has, ``limit`` at most."""
        assert 0 <= number < self.num_documents
        (length,), (offset,) = (array.tolist() for array in self._index(number, 1))
        return offset // self._type.itemsize, length if limit is None else min(length, limit)


class _File:
    """A file opened once and read at any offset, from any thread."""

    def __init__(self, path: Path):
        self.path = path
        with reading(path, DataError):
            check_plain(path)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size

    def read(self, begin: int, kind: np.dtype, first: int, count: int) -> np.ndarray:
        """Entries of an array that begins at byte ``begin``. [count]"""
        data, place, end = b"", begin + first * kind.itemsize, begin + (first + count) * kind.itemsize
        while place + len(data) < end:  # Linux reads at most 2 GiB at once
            with reading(self.path, DataError):
                block = os.pread(self._descriptor, end - place - len(data), place + len(data))
            if not block:
                raise DataError(f"{self.path}: ends before byte {end}: it was cut short while in use")
            data += block
        return np.frombuffer(data, dtype=kind)
