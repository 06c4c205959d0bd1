"""megatron-core's indexed dataset, written and read: documents of tokens in a ``.bin`` and their index in an ``.idx``.

    .idx  "MMIDIDX\\0\\0", version 1 (uint64), type code (uint8), sequences N (uint64), documents D (uint64),
          N lengths (int32, tokens), N offsets (int64, bytes in the .bin), D document ends (int64; 0 first)
    .bin  tokens one after the other: uint16 (code 8) below 65,500 pieces, else int32 (code 4)

The format is that of megatron/core/datasets/indexed_dataset.py (0.16.1), whose reader checks by assert only. Here each
document is one sequence. Files are read with pread, not mapped: a file cut short under a running job is then an error
that names it, not a SIGBUS.
"""

import hashlib
import os
import struct
import weakref
from pathlib import Path

import numpy as np

from nt_dist.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_BLOCK = 1 << 20


def token_type(vocab_size: int) -> np.dtype:
    """The type that tokens are stored in, by megatron-core's rule."""
    return _CODES[8] if vocab_size < 65500 else _CODES[4]


class IndexedWriter:
    """Write documents into ``<prefix>.bin`` and, on closing, ``<prefix>.idx``, both synced to disk.

    Args:
        prefix: Path without suffix; the files must be renamed into place by the caller.
        vocab_size: Decides the type of the tokens.
    """

    def __init__(self, prefix: Path, vocab_size: int):
        self._paths = [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]
        self._type = token_type(vocab_size)
        self._bin = open(self._paths[0], "wb")  # noqa: SIM115 - closed by close() or abandon()
        self._hash = hashlib.sha256()
        self._lengths: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: all their tokens, and how many each has. [sum(lengths)], [documents]"""
        assert len(tokens) == lengths.sum()
        data = np.ascontiguousarray(tokens, dtype=self._type).tobytes()
        self._bin.write(data)
        self._hash.update(data)
        self._lengths.append(lengths.astype("<i4"))

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return sum(map(len, self._lengths))

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._bin.tell() // self._type.itemsize

    def close(self) -> dict[str, dict[str, int | str]]:
        """Finish both files.

        Returns:
            Size (bytes) and SHA-256 of each file, by name.
        """
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype="<i4")
        offsets = np.zeros(len(lengths), dtype="<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
        code = next(code for code, kind in _CODES.items() if kind == self._type)
        header = _HEADER.pack(_MAGIC, 1, code, len(lengths), len(lengths) + 1)
        index_hash = hashlib.sha256()
        with open(self._paths[1], "wb") as stream:
            for data in (
                header,
                lengths.tobytes(),
                (offsets * self._type.itemsize).tobytes(),
                np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
            ):
                stream.write(data)
                index_hash.update(data)
            stream.flush()
            os.fsync(stream.fileno())
        self._bin.flush()
        os.fsync(self._bin.fileno())
        self._bin.close()
        return {
            path.name: {"size": path.stat().st_size, "sha256": digest.hexdigest()}
            for path, digest in zip(self._paths, (self._hash, index_hash), strict=True)
        }

    def abandon(self) -> None:
        """Close the open file without finishing anything."""
        self._bin.close()


class IndexedTokens:
    """Read ``<prefix>.bin`` and ``<prefix>.idx``; everything is checked on opening.

    Args:
        prefix: Path without suffix.

    Raises:
        DataError: If a file is missing, cut short, or does not fit the other; it names the file.
    """

    def __init__(self, prefix: Path):
        self.bin_path, self.idx_path = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
        self._bin = _File(self.bin_path)
        self._idx = _File(self.idx_path)
        if self._idx.size < _HEADER.size:
            raise DataError(f"{self.idx_path}: {self._idx.size} bytes are less than the header of an indexed dataset")
        magic, version, code, sequences, documents = _HEADER.unpack(self._idx.read(0, _HEADER.size))
        if magic != _MAGIC or version != 1 or code not in _CODES:
            raise DataError(f"{self.idx_path}: is not the index of an indexed dataset of tokens (version 1)")
        if documents != sequences + 1:
            raise DataError(f"{self.idx_path}: has {sequences} sequences for {documents - 1} documents; must be equal")
        expected = _HEADER.size + sequences * 12 + documents * 8
        if self._idx.size != expected:
            raise DataError(
                f"{self.idx_path}: {self._idx.size} bytes, must be {expected} for {sequences} documents: is it "
                "cut short?"
            )
        self._type = _CODES[code]
        self.num_documents: int = sequences
        self.num_tokens = self._check()

    def _check(self) -> int:
        """Compare lengths, offsets and the size of the .bin; returns the number of tokens."""
        end = 0  # bytes of the .bin that the documents so far take
        for first in range(0, self.num_documents, _BLOCK):
            count = min(_BLOCK, self.num_documents - first)
            lengths = self._lengths(first, count).astype(np.int64)
            ends = end + np.cumsum(lengths) * self._type.itemsize
            offsets = self._offsets(first, count)
            if lengths.min() < 1 or offsets[0] != end or not np.array_equal(offsets[1:], ends[:-1]):
                raise DataError(f"{self.idx_path}: is damaged: offsets and lengths of its documents do not agree")
            end = int(ends[-1])
        if self._bin.size != end:
            raise DataError(
                f"{self.bin_path}: {self._bin.size} bytes, must be {end} by {self.idx_path.name}: is it cut short?"
            )
        return end // self._type.itemsize

    def _lengths(self, first: int, count: int) -> np.ndarray:
        return np.frombuffer(self._idx.read(_HEADER.size + first * 4, count * 4), dtype="<i4")

    def _offsets(self, first: int, count: int) -> np.ndarray:
        start = _HEADER.size + self.num_documents * 4
        return np.frombuffer(self._idx.read(start + first * 8, count * 8), dtype="<i8")

    def tokens(self, start: int, count: int) -> np.ndarray:
        """``count`` tokens of all documents one after the other, int64. [count]"""
        assert start >= 0 and start + count <= self.num_tokens
        size = self._type.itemsize
        return np.frombuffer(self._bin.read(start * size, count * size), dtype=self._type).astype(np.int64)

    def document(self, number: int, limit: int | None = None) -> np.ndarray:
        """The tokens of one document, the first ``limit`` at most, int64."""
        assert 0 <= number < self.num_documents
        length, offset = int(self._lengths(number, 1)[0]), int(self._offsets(number, 1)[0])
        return self.tokens(offset // self._type.itemsize, length if limit is None else min(length, limit))


class _File:
    """A file opened once and read at any offset, from any thread."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on."""
        pieces, missing = [], count
        while missing:  # Linux reads at most 2 GiB at once
            try:
                piece = os.pread(self._descriptor, missing, offset + count - missing)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
            if not piece:
                raise DataError(f"{self.path}: ends before byte {offset + count}: it was cut short while in use")
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
