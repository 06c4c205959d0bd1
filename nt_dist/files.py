"""Files and folders: whole or not there, whenever the program or the machine stops; and those that a setting names."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated, Any, BinaryIO

from pydantic import Field, StrictStr

from nt_dist.errors import DataError, NTDistError, RunError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SYNCED_BYTES = 1 << 26  # of a file that is written, at a time
WAITING_BYTES = 1 << 24  # of a journal on a disk that takes nothing
_OF_FILE_SYSTEMS = "lost+found"  # in the first folder of a disk; only its administrator may read it
_LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path, error: type[NTDistError] = RunError, make_folder: bool = True) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` by one rename, and is on the disk, when the context ends.

    Its folder is made where there is none, or else must be there. When the context fails, ``path`` stays as it was;
    where it cannot be written, ``error`` is raised.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path, error):
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(done: str, path: Path | str, error: type[NTDistError] = RunError) -> Iterator[None]:
    """Raise ``error``, which says that ``path`` cannot be ``done``, for an OSError in the context."""
    try:
        yield
    except OSError as problem:
        raise error(f"{path}: cannot be {done}: {problem.strerror or problem}") from problem


reading, writing = partial(_naming, "read"), partial(_naming, "written")


def check_plain(path: Path) -> None:
    """Raise an OSError unless ``path`` is, or links to, a plain file: opening a FIFO hangs, a device may not end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))


def read_json(path: Path, error: type[NTDistError] = RunError) -> Any:
    """What a file of JSON holds; ``error``, which names it, where it is no plain file, cannot be read or is no JSON."""
    with reading(path, error):
        check_plain(path)
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: cannot be read: {problem}") from None


def write_whole(path: Path, content: str | bytes, error: type[NTDistError] = RunError) -> None:
    """Write bytes, or text as UTF-8, with :func:`replacing`."""
    with replacing(path, error) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """See the names in ``folder`` on the disk: a rename lasts through a power cut only after this.

    Some file systems cannot do it for a folder, and there is nothing better to do there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def lock(file: IO, waits: bool = False) -> bool:
    """Lock an open file against other processes until it is closed; False if another one has it and this does not wait.

    The lock is the operating system's: it goes with the process, however that ends. Some file systems have none (Lustre
    without -o flock, NFS): that is a warning, for nothing but two runs at once needs it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        what = "%s: cannot be locked (%s): start no second run here before this one has ended"
        _LOGGER.warning(what, Path(file.name).parent, error.strerror)
    return True


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of a file, as it was meant to be written; read from JSON, no other types do."""

    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: StrictStr


def write_new(path: Path, blocks: Iterable) -> FileEntry:
    """Write bytes, memoryviews or contiguous arrays to a file that is not there yet, and see them on the disk.

    They get there a part at a time, so that its size says how far it is, and nothing is left to wait long for.
    """
    size, synced, digest = 0, 0, hashlib.sha256()
    with open(path, "xb") as file:
        for block in blocks:
            digest.update(block)
            size += file.write(block)
            if size - synced >= SYNCED_BYTES:
                file.flush()
                os.fdatasync(file.fileno())
                synced = size
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


class Journal:
    """A file that only tells, and grows by whole records: nothing that the disk refuses is an error.

    Such records wait in memory, with one warning, until the disk takes the next one; of more than ``WAITING_BYTES`` the
    oldest are dropped. A record stands in the file whole or not at all. With ``speaks`` False another file beside it
    gives the warning.
    """

    def __init__(self, path: Path, speaks: bool = True):
        self.path, self._speaks = path, speaks
        self._waiting: deque[bytes] = deque()
        self._file: BinaryIO | None = None
        self._end = 0  # of the last whole record, in bytes
        self._written = self._settled = 0  # records
        self._refused = self._torn = False

    def add(self, record: bytes) -> None:
        """Append a record, after those that wait."""
        self._waiting.append(record)
        while sum(map(len, self._waiting)) > WAITING_BYTES:
            self._waiting.popleft()
        with self._trying():
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
                self._end = self._file.tell()
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
            if self._refused:
                self._refused = False
                if self._speaks:
                    _LOGGER.warning("%s can be written again", self.path)

    def _write(self, record: bytes) -> None:
        if self._torn:
            self._file.truncate(self._end)
        self._torn, done = True, 0
        while done < len(record):
            done += self._file.write(record[done:])
        self._torn, self._end = False, self._end + done
        self._written += 1

    def settle(self) -> int:
        """See the records on the disk; returns how many of those added are there for sure."""
        with self._trying():
            if self._file is not None:
                os.fsync(self._file.fileno())
                self._settled = self._written
        return self._settled

    def close(self) -> None:
        """Close the file, with everything on the disk that it takes."""
        self.settle()
        with self._trying():
            if self._file is not None:
                self._file.close()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if self._speaks and not self._refused:
                what = "%s: cannot be written: %s; it is tried again with what comes next, and the run goes on"
                _LOGGER.warning(what, self.path, problem.strerror or problem)
            self._refused = True


def check_free(out: Path) -> None:
    """Refuse by a RunError, before any work, an --out that holds something or cannot be made."""
    if out.is_symlink():
        raise RunError(f"--out {out}: must be a folder, or nothing yet")
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"--out {out}: is not empty; nothing in it is touched")
    _check_place("--out", out)  # a folder is renamed to it


def check_folder(out: Path) -> None:
    """Refuse by a RunError, before any work, an --out that is no folder that can be made or written to."""
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: must be a folder, or nothing yet")
    _check_place("--out", out / "file")


def check_file(key: str, path: Path) -> None:
    """Refuse by a RunError, before any work, a file, given as ``key``, that could not be written, or is a device."""
    if path.exists() and not path.is_file():
        raise RunError(f"{key} {path}: must be a plain file, or nothing yet")
    _check_place(key, path)


def _check_place(key: str, path: Path) -> None:
    parent = next(each for each in path.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"{key} {path}: {parent} must be a folder that can be written to")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder, which becomes ``out`` by one rename when all has gone well; else nothing is left, with a
    RunError as :func:`check_free`'s, or where a file cannot be written."""
    check_free(out)
    parent = out.absolute().parent
    with writing(f"--out {out}"):
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as temporary:
            folder = Path(temporary, "writing")
            folder.mkdir()
            yield folder
            with contextlib.suppress(OSError):  # some file systems have no permissions
                for file in folder.iterdir():  # safetensors writes files that only their owner may read
                    file.chmod(folder.stat().st_mode & 0o666)  # as the user's umask has it
            os.rename(folder, out)


def plain_suffix(path: Path) -> str:
    """The suffix that tells a file's format, past that of its compression: ".jsonl" of "a.jsonl.gz"."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def entries(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, sorted by name, without hidden entries and what file systems keep there for themselves;
    DataError if it cannot be read, or a link in it leads nowhere: what was meant would be missing without a word."""
    with reading(folder, DataError), os.scandir(folder) as scanned:
        kept = (entry for entry in scanned if entry.name[0] != "." and entry.name != _OF_FILE_SYSTEMS)
        found = sorted(kept, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_symlink():
                check_link(Path(entry.path))
    return found


def check_link(path: Path) -> None:
    """Raise a DataError if ``path`` is a link that leads to nothing, or in a circle."""
    if not path.exists():
        raise DataError(f"{path}: is a link to {os.readlink(path)}, where there is nothing; remove it or mend it")


def files_under(folder: Path) -> list[Path]:
    """All files in a folder and in all folders in it, sorted by path; fails as :func:`entries` does.

    Links are followed, and each folder and file is taken once, by its own name where that is in the folder too.
    """
    waiting, seen, found = deque([folder]), set(), []
    while waiting:  # folders first, then what links lead to
        place = waiting.popleft()
        with reading(place, DataError):
            real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        for entry in entries(place):
            with reading(entry.path, DataError):
                is_link = entry.is_symlink()
                if entry.is_dir():
                    (waiting.append if is_link else waiting.appendleft)(Path(entry.path))
                elif entry.is_file():
                    own = os.path.realpath(entry.path) if is_link else os.path.join(real, entry.name)
                    found.append((is_link, Path(entry.path), own))
    return sorted({own: path for _, path, own in sorted(found, reverse=True)}.values())


def _is_marker(name: str) -> bool:
    return name[0] == "_" and "." not in name


def expand(key: str, patterns: str | Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """The files that the setting ``key`` names, each once: files as listed, folders and glob patterns sorted by path.

    Folders are read as :func:`files_under` does, files without one of the suffixes (compression aside; empty: any) left
    out, and, as with patterns, what marks other files (Spark's _SUCCESS). "**" in a pattern crosses folders. DataError
    if one is missing or names no file.
    """
    found: dict[str, Path] = {}  # by the place that links lead to
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(os.path.expanduser(pattern))
        if not pattern.strip():
            raise DataError(f"{key} = {pattern!r}: must not be empty")
        if path.is_dir():
            files = [file for file in files_under(path) if not suffixes or plain_suffix(file) in suffixes]
            files = [file for file in files if not any(map(_is_marker, file.relative_to(path).parts))]
            lacks = f"the folder holds no file{' ending in ' + ', '.join(suffixes) if suffixes else ''}"
        elif path.exists():
            files, lacks = [path], "must be a file, a folder or a pattern of files"
        else:
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            files = [file for file in files if not _is_marker(file.name)]
            lacks = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
            for file in files:  # one that went round in a circle too often stands there with a shorter name as well
                check_link(Path(os.path.realpath(file.parent), file.name))
        files = [file for file in files if file.is_file()]
        if not files:
            raise DataError(f"{key} = {pattern!r}: {lacks}")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())
