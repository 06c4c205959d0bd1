"""Files of a corpus: which ones a setting names, and reading them through any compression with clear errors."""

import bz2
import codecs
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nt_dist.errors import DataError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_BLOCK = 1 << 20


def plain_suffix(path: Path) -> str:
    """The suffix that tells a file's format, past that of its compression: ".jsonl" of "a.jsonl.gz"."""
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def expand(key: str, patterns: tuple[str, ...], suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a setting names, each once: files as listed, folders and glob patterns sorted by path.

    Args:
        key: The setting, for messages.
        patterns: Files, folders (read with all folders in them, hidden entries left out) and patterns ("**" crosses
            folders).
        suffixes: What a folder's files must end with, compression aside; empty: anything.

    Raises:
        DataError: If one of them is missing or names no file.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if not _is_hidden(entry.relative_to(path)))
            files = [entry for entry in inside if not suffixes or plain_suffix(entry) in suffixes]
            lacks = f"the folder holds no file{' ending in ' + ', '.join(suffixes) if suffixes else ''}"
        elif path.exists():
            files, lacks = [path], ""
            if not path.is_file():
                raise DataError(f"{key} = {pattern!r}: must be a file, a folder or a pattern of files")
        else:
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            lacks = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
        files = [file for file in files if file.is_file()]
        if not files:
            raise DataError(f"{key} = {pattern!r}: {lacks}")
        found += files
    return list(dict.fromkeys(found))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Open a file, decompressed by its suffix.

    Yields:
        The stream, and a function that tells how many of the file's own bytes have been read.

    Raises:
        DataError: If it cannot be opened, or is damaged or cut short; also while it is read in the ``with``.
    """
    try:
        with open(path, "rb") as raw, _decompressed(path, raw) as stream:
            yield stream, raw.tell
    except EOFError as error:
        raise DataError(f"{path}: the compressed file is truncated") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, _ZstandardError) as error:
        raise DataError(f"{path}: is no {path.suffix} file, or is damaged: {error}") from error
    except OSError as error:
        if error.strerror is None:  # how bz2 says that the data is wrong
            raise DataError(f"{path}: is no {path.suffix} file, or is damaged: {error}") from error
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    match path.suffix:
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".xz":
            return lzma.LZMAFile(raw)
        case ".zst":
            return io.BufferedReader(_ZstandardFile(path, raw), _BLOCK)
    return raw


class _ZstandardError(Exception):
    """Wrong bytes in a .zst file."""


class _ZstandardFile(io.RawIOBase):
    """A .zst file of one or more frames; the package's own reader takes a truncated file for a whole one."""

    def __init__(self, path: Path, raw: BinaryIO):
        try:
            import zstandard
        except ImportError as error:
            raise DataError(
                f"{path}: reading .zst files needs the package zstandard (pip install zstandard)"
            ) from error
        self._raw = raw
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._fed = False  # whether the present frame has begun
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._ready:
            data = self._raw.read(_BLOCK)
            if not data:
                if self._fed:
                    raise EOFError
                return 0
            self._ready = b"".join(self._frames(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _frames(self, data: bytes) -> Iterator[bytes]:
        while data:
            try:
                yield self._frame.decompress(data)
            except self._error as error:
                raise _ZstandardError(str(error)) from error
            self._fed = not self._frame.eof
            data = self._frame.unused_data
            if self._frame.eof:
                self._frame = self._new()


def read_text(path: Path) -> Iterator[tuple[str, int]]:
    """The text of a UTF-8 file, line ends as they are, in blocks, each with the file's bytes read so far.

    Raises:
        DataError: If the file is binary (holds a NUL byte or is not UTF-8) or cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with open_file(path) as (stream, position):
        while data := stream.read(_BLOCK):
            refuse_binary(path, data)
            yield _decode(path, decoder, data, final=False), position()
        yield _decode(path, decoder, b"", final=True), position()


def refuse_binary(path: Path, data: bytes) -> None:
    """Raise DataError if there is a NUL byte, which no text holds."""
    if b"\0" in data:
        raise DataError(f"{path}: holds a NUL byte: it is binary, not text")


def _decode(path: Path, decoder: codecs.IncrementalDecoder, data: bytes, final: bool) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error.reason}") from error
