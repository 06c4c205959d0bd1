"""The folder of a run: who may write into it, and the resolved config beside the results."""

import fcntl
import os
from pathlib import Path

from nt_dist.config import Config
from nt_dist.errors import RunError
from nt_dist.files import write_whole


class RunFolder:
    """``run.dir``, made where there is none and locked against a second run for as long as this object is open.

    The main rank alone has one. The lock is the operating system's: it goes with the process, however that ends.
    RunError if the folder cannot be made or written, or another run is working in it.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("a+")
        except OSError as problem:
            raise RunError(f"run.dir = {str(path)!r}: cannot be made or written: {problem.strerror}") from problem
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise RunError(f"run.dir = {str(path)!r}: another run is working in it (process {owner})") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()} on {os.uname().nodename}\n")
        self._lock.flush()

    def write_config(self, config: Config) -> None:
        """Writes ``config.toml`` with every setting resolved, whole or not at all."""
        write_whole(self.path / "config.toml", config.to_toml())

    def close(self) -> None:
        """Gives the folder back."""
        self._lock.close()
