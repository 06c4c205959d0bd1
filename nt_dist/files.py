"""Files and folders that are whole or not there, whenever the program or the machine stops."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, BinaryIO

from pydantic import Field, StrictStr

from nt_dist.errors import NTDistError, RunError


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


def write_whole(path: Path, content: str | bytes, error: type[NTDistError] = RunError) -> None:
    """Write bytes, or text as UTF-8, with :func:`replacing`."""
    with replacing(path, error) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """See the names in ``folder`` on the disk: a rename lasts through a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of a file, as it was meant to be written; read from JSON, no other types do."""

    size: Annotated[int, Field(strict=True, ge=0)]
    sha256: StrictStr


def write_new(path: Path, blocks: Iterable) -> FileEntry:
    """Write bytes, memoryviews or contiguous arrays to a file that is not there yet, and see them on the disk."""
    size, digest = 0, hashlib.sha256()
    with open(path, "xb") as file:
        for block in blocks:
            digest.update(block)
            size += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def check_free(out: Path) -> None:
    """Refuse by a RunError, before any work, an --out that holds something or cannot be made."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RunError(f"--out {out}: must be a folder, or nothing yet")
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"--out {out}: is not empty; nothing in it is touched")
    parent = next(each for each in out.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"--out {out}: {parent} must be a folder that can be written to")


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
            for file in folder.iterdir():  # safetensors writes files that only their owner may read
                file.chmod(folder.stat().st_mode & 0o666)  # as the user's umask has it
            os.rename(folder, out)
