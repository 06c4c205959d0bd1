"""pytest in a fork of a process that has torch and DeepSpeed imported already, its ranks forks as well.

For tests/mutations, which runs many single tests of a tree that differs by a line: importing the libraries anew in
each rank takes several times as long as such a test. What is under test, nt_dist and tests, is imported in the fork.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

LIBRARIES = ("pytest", "torch", "deepspeed", "deepspeed.pipe", "transformers", "megatron.core.tensor_parallel.mappings")
POLL_SECONDS = 0.1


def import_libraries() -> None:
    """Import what takes seconds; to be called once, before the first fork."""
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    for name in LIBRARIES:
        importlib.import_module(name)


def run_pytest(arguments: list[str], tree: Path, log: Path, timeout: float) -> int | None:
    """Run pytest in a fork; return its exit code, or None if it had to be stopped.

    Args:
        arguments: pytest's.
        tree: Folder with nt_dist and tests.
        log: Where its output goes.
        timeout: Seconds after which it and its ranks are stopped.
    """
    process = os.fork()
    if process == 0:
        os.setsid()
        os._exit(_run(arguments, tree, log))
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _run(arguments: list[str], tree: Path, log: Path) -> int:
    import pytest

    _redirect(log)
    os.chdir(tree)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("nt_dist", "tests")]:
        del sys.modules[name]
    root = Path(__file__).parents[1]
    sys.path[:] = [str(tree), *(each for each in sys.path if Path(each).resolve() != root)]
    sys.dont_write_bytecode = True  # two versions of a file of one second and one size would be taken for one another
    os.environ.update(PYTHONPATH=str(tree), COLUMNS="400")  # a narrow terminal hides why a test failed
    pool = importlib.import_module("nt_dist.testing.pool")
    pool.subprocess = types.SimpleNamespace(Popen=_ForkedRank, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    return code


def _redirect(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


class _ForkedRank:
    """What the pool needs of subprocess.Popen, for ``python -m nt_dist.testing.worker SOCKET BACKEND``."""

    def __init__(self, command: list[str], *, stdout, env: dict[str, str], **others):
        self.pid, self.code = os.fork(), None
        if self.pid == 0:
            self._work(command[3:], stdout.fileno(), env)

    def _work(self, arguments: list[str], output: int, env: dict[str, str]) -> None:
        code = 1
        try:
            os.dup2(output, 1)
            os.dup2(output, 2)
            connection = int(arguments[0])
            os.closerange(3, connection)  # a copy of the parent's end would hide that it is gone
            os.closerange(connection + 1, 4096)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
            os.environ.clear()
            os.environ.update(env)
            importlib.import_module("nt_dist.testing.worker").main(arguments)
            code = 0
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, or None while the rank lives."""
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code

    def wait(self) -> int:
        """Wait for the rank's end."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self) -> None:
        """End the rank at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
