"""Reading the files of a corpus through any compression, with clear errors."""

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nt_dist.errors import DataError
from nt_dist.files import reading

_ZST_WINDOW = 1 << 31  # bytes: what ``zstd --ultra --long=31`` may ask for
_BLOCK = 1 << 18  # bytes of a file
_LONGEST_LINE = 1 << 27  # bytes, many times the longest document: a few kilobytes may stand for a line of gigabytes
_FED = 1 << 12  # of a compressed one at a time: zstandard makes up to thirty thousand times as many of them


def _zstandard_decompressor(path: Path) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"{path}: reading .zst files needs the package zstandard (pip install zstandard)") from error
    return zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW).decompressobj()


_DECOMPRESSORS = {
    ".gz": lambda path: zlib.decompressobj(zlib.MAX_WBITS | 16),  # 16: with gzip's header and checksum
    ".bz2": lambda path: bz2.BZ2Decompressor(),
    ".xz": lambda path: lzma.LZMADecompressor(),
    ".zst": _zstandard_decompressor,
}
"""What makes the reader of one frame of a file: an object with ``decompress(data)``, ``eof`` and ``unused_data``."""


def read_blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """The contents of a file, decompressed by its suffix, each block with the file's own bytes read so far.

    DataError if it cannot be read, is damaged or cut short, or is binary: holds a NUL byte, which no text does.
    """
    with reading(path, DataError), open(path, "rb") as file:
        is_compressed = path.suffix.lower() in _DECOMPRESSORS
        size = _FED if is_compressed else _BLOCK
        blocks: Iterable[bytes] = iter(lambda: file.read(size), b"")
        for block in _decompress(path, blocks) if is_compressed else blocks:
            if b"\0" in block:
                raise DataError(f"{path}: holds a NUL byte: it is binary, not text")
            yield block, file.tell()


def _decompress(path: Path, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The contents of frames that follow each other, as tools that append leave them; zeros between them are padding.

    Readers of whole files take a truncated one for a whole one (zstandard's), or pass over what is no frame (bz2's).
    """
    frame, suffix = None, path.suffix.lower()
    for data in blocks:
        while data := data if frame else data.lstrip(b"\0"):
            frame = frame or _DECOMPRESSORS[suffix](path)
            try:
                block = frame.decompress(data)
            except Exception as error:  # each library has its own, zstandard's with no class in common
                raise DataError(f"{path}: is no {suffix} file, or is damaged: {error}") from error
            yield block
            data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise DataError(f"{path}: the compressed file is truncated")


def read_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """The lines of a file, each with its line end and the file's bytes read so far; fails as ``read_blocks`` does, and
    where a line is longer than any text."""
    line, length, position = [], 0, 0  # joined at its end only: a line of many blocks is not copied with each of them
    for block, position in read_blocks(path):
        for part in io.BytesIO(block):
            line.append(part)
            length += len(part)
            if length > _LONGEST_LINE:
                raise DataError(f"{path}: a line is longer than {_LONGEST_LINE >> 20} MiB: it is no file of JSON lines")
            if part.endswith(b"\n"):
                yield b"".join(line), position
                line, length = [], 0
    yield b"".join(line), position


def read_text(path: Path) -> Iterator[tuple[str, int]]:
    """The text of a UTF-8 file, line ends as they are, in blocks; as ``read_blocks`` otherwise."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        for block, position in read_blocks(path):
            yield decoder.decode(block), position
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error.reason}") from error
