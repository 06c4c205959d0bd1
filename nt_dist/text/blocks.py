"""Checksums of a prepared file, a block at a time: made as it is written, and compared when it is opened.

    train.bin.blocks    8 bytes of BLAKE2b for each MiB of train.bin

The SHA-256 of a whole corpus takes minutes at each start; a sample of its blocks takes a second and finds another file,
a part of another file, and any damage that is not small. Each start and each rank draws blocks of its own, so that what
is small is found some time.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nt_dist.errors import DataError
from nt_dist.files import FileEntry, check_plain, reading

BLOCKS = ".blocks"  # behind the name of the file
SIZE = 1 << 20  # of a block, in bytes
SAMPLED = 64  # blocks of a file, and all of a smaller one
_SUM = 8  # bytes


class BlockSums:
    """The sums of what passes through."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._open, self._room = hashlib.blake2b(digest_size=_SUM), SIZE

    def passing(self, pieces: Iterable[Any]) -> Iterator[Any]:
        """Give the pieces (contiguous arrays) as they are."""
        for piece in pieces:
            rest = piece.reshape(-1).view(np.uint8)
            while len(rest):
                self._open.update(rest[: self._room])
                taken = min(len(rest), self._room)
                rest, self._room = rest[taken:], self._room - taken
                if not self._room:
                    self._end_block()
            yield piece

    def result(self) -> bytes:
        """The sums of all blocks, the last of which may be shorter."""
        if self._room < SIZE:
            self._end_block()
        return b"".join(self._done)

    def _end_block(self) -> None:
        self._done.append(self._open.digest())
        self._open, self._room = hashlib.blake2b(digest_size=_SUM), SIZE


def check_blocks(path: Path, files: dict[str, FileEntry], is_whole: bool) -> None:
    """Compare a file of the right size with its sums: all blocks, or a sample; DataError names the first that differs.

    ``files`` are those of its folder. A file without sums, of an older version, is compared as a whole if it is asked
    for or takes no longer than a sample.
    """
    sums, expected = files.get(path.name + BLOCKS), files[path.name]
    count = -(-expected.size // SIZE)
    with reading(path, DataError):
        check_plain(path)
        with path.open("rb") as file:
            if sums is None:
                small = count <= SAMPLED
                if (is_whole or small) and hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                    raise DataError(f"{path}: is not what was prepared: its SHA-256 is another")
                return
            table = path.with_name(path.name + BLOCKS)
            check_plain(table)
            said = table.read_bytes()
            if hashlib.sha256(said).hexdigest() != sums.sha256 or len(said) != count * _SUM:
                raise DataError(f"{table}: is damaged")
            chosen = range(count)
            if not is_whole and count > SAMPLED:
                chosen = sorted({0, count - 1, *np.random.default_rng().choice(count, SAMPLED, replace=False).tolist()})
            for block in chosen:
                data = os.pread(file.fileno(), SIZE, block * SIZE)
                if hashlib.blake2b(data, digest_size=_SUM).digest() != said[block * _SUM : (block + 1) * _SUM]:
                    where = f"block {block} of {count} (from byte {block * SIZE:,})"
                    raise DataError(f"{path}: is not what was prepared: {where} is another")
