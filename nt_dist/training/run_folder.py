"""The folder of a run: one run at a time may write into it."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from nt_dist.errors import RunError


def claim(folder: Path) -> TextIO:
    """Make ``run.dir`` where there is none, and keep other runs out of it until the returned file is closed.

    The main rank alone does so. The lock is the operating system's: it goes with the process, however that ends.
    RunError if the folder cannot be made or written, or another run is working in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as problem:
        raise RunError(f"run.dir = {str(folder)!r}: cannot be made or written: {problem.strerror}") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise RunError(f"run.dir = {str(folder)!r}: another run is working in it (process {owner})") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()} on {os.uname().nodename}\n")
    lock.flush()
    return lock
