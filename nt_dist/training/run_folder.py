"""The folder of a run: one run at a time may write into it."""

import os
from pathlib import Path
from typing import TextIO

from nt_dist.config.load import RUN_LOCK
from nt_dist.errors import RunError
from nt_dist.files import lock


def claim(folder: Path) -> TextIO:
    """Make ``run.dir`` where there is none, and keep other runs out of it until the returned file is closed.

    The main rank alone does so. RunError if the folder cannot be made or written, or another run is working in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUN_LOCK).open("a+")
    except OSError as problem:
        raise RunError(f"run.dir = {str(folder)!r}: cannot be made or written: {problem.strerror}") from problem
    if not lock(file):
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise RunError(f"run.dir = {str(folder)!r}: another run is working in it (process {owner})")
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file
