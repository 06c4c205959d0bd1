"""An output folder that is whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from nt_dist.errors import RunError


def check_free(out: Path) -> None:
    """Refuse, before any work, an --out that holds something or cannot be made.

    Raises:
        RunError: It is not empty, no folder, or its parent is none that can be written to.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RunError(f"--out {out}: must be a folder, or nothing yet")
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"--out {out}: is not empty; nothing in it is touched")
    parent = next(each for each in out.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"--out {out}: {parent} must be a folder that can be written to")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out``, which becomes ``out`` by one rename when all has gone well.

    Raises:
        RunError: As :func:`check_free`, or a file cannot be written; then nothing is left behind.
    """
    check_free(out)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as temporary:
            writing = Path(temporary, "writing")
            writing.mkdir()
            yield writing
            for file in writing.iterdir():  # safetensors writes files that only their owner may read
                file.chmod(writing.stat().st_mode & 0o666)  # as the user's umask has it
            os.rename(writing, out)
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written: {error.strerror or error}") from error
