"""One pool of ranks shared by all tests of a process.

Importing torch and DeepSpeed costs seconds a rank, so ranks are started once, when first needed, and kept: a test
of two uses the first two, one of four adds two more. Nothing else is kept: every task makes its own process group
over a FileStore of its own (no ports, so that runs side by side cannot meet) and the libraries' global state is put
back after it (see worker.py). Ranks are always new interpreters, never forks.
"""

import atexit
import functools
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

MAX_WORLD_SIZE = 4
GRACE_SECONDS = 5.0  # how long the other ranks may still answer after the first failure
LOG_LINES = 60


class RankError(Exception):
    """A rank failed, died or did not answer in time: which did first, and with what exception, if that is known."""

    def __init__(self, rank: int, message: str, error: BaseException | None = None):
        super().__init__(message)
        self.rank, self.error = rank, error


def run_distributed(
    fn: Callable[..., Any], world_size: int, *args: Any, backend: str = "gloo", timeout: float = 180.0
) -> list[Any]:
    """Run ``fn(rank, world_size, *args)`` on every rank and return the results, in rank order.

    torch.distributed is initialised when ``fn`` is called, and RANK, WORLD_SIZE and LOCAL_RANK are set; the process
    group is destroyed after it. With backend "nccl" rank r has GPU r as its current device; the same body runs there.

    ``fn`` stands at the top level of a module; it, its arguments and its results travel by pickle. After ``timeout``
    seconds the ranks are stopped, whatever they do.

    Raises:
        RankError: with the traceback of the rank that failed first, or where each rank stood at the timeout. Its cause
            is the rank's own exception, where that could be pickled.
    """
    if not 1 <= world_size <= MAX_WORLD_SIZE:
        raise ValueError(f"world_size = {world_size} must be between 1 and {MAX_WORLD_SIZE}")
    return _shared_pool(backend).run(fn, world_size, args, timeout)


@functools.cache
def _shared_pool(backend: str) -> "Pool":
    pool = Pool(backend)
    atexit.register(pool.close)
    return pool


class _Worker:
    """One rank's interpreter, its connection and the file its output goes to."""

    def __init__(self, rank: int, backend: str, folder: Path):
        self.rank = rank
        self.log = folder / f"rank-{rank}.log"
        ours, theirs = socket.socketpair()
        path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        accelerator = "cuda" if backend == "nccl" else "cpu"
        settings = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": accelerator, "PYTHONPATH": os.pathsep.join(path)}
        with theirs, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nt_dist.testing.worker", str(theirs.fileno()), backend],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=os.environ | settings,
            )
        self.connection = Connection(ours.detach())
        self.log_start = self.log.stat().st_size

    def send(self, task: bytes) -> None:
        self.log_start = self.log.stat().st_size
        self.connection.send_bytes(task)

    def output(self) -> str:
        """The last lines this rank printed in the task at hand."""
        lines = self.log.read_bytes()[self.log_start :].decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def failed(self, text: str, error: BaseException | None = None) -> RankError:
        return RankError(self.rank, f"rank {self.rank} failed:\n{text}\noutput:\n{self.output()}", error)

    def died(self) -> RankError:
        code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return RankError(self.rank, f"rank {self.rank} ended {how} in the middle of its task:\n{self.output()}")


class Pool:
    """Ranks 0 … n-1, started when first needed and started again when one was lost."""

    def __init__(self, backend: str):
        self.backend = backend
        self.folder = Path(tempfile.mkdtemp(prefix="nt_dist_ranks_"))
        self.workers: dict[int, _Worker] = {}
        self.num_tasks = 0

    def run(self, fn: Callable[..., Any], world_size: int, args: tuple, timeout: float) -> list[Any]:
        """See run_distributed."""
        workers = [self._worker(rank) for rank in range(world_size)]
        self.num_tasks += 1
        store = self.folder / f"store-{self.num_tasks}"
        call = pickle.dumps((fn, args))  # pickled apart: a rank can unpickle it only after it has our sys.path
        for worker in workers:
            worker.send(pickle.dumps((list(sys.path), str(store), worker.rank, world_size, timeout, call)))
        answers, failure = self._collect(workers, timeout)
        store.unlink(missing_ok=True)
        for worker in workers:
            if worker.rank not in answers:  # still in a collective that will never end, or dead
                worker.stop()
                del self.workers[worker.rank]
        if failure:
            raise failure from failure.error
        return [answers[rank] for rank in range(world_size)]

    def close(self) -> None:
        """Stop all ranks."""
        for worker in self.workers.values():
            worker.stop()
        self.workers.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _worker(self, rank: int) -> _Worker:
        if rank not in self.workers or self.workers[rank].process.poll() is not None:
            self.workers[rank] = _Worker(rank, self.backend, self.folder)
        return self.workers[rank]

    def _collect(self, workers: list[_Worker], timeout: float) -> tuple[dict[int, Any], RankError | None]:
        """The results of the ranks that answered, and the first failure."""
        deadline = time.monotonic() + timeout
        waiting = {worker.connection: worker for worker in workers}
        answers: dict[int, Any] = {}
        failure = None
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                return answers, failure or _timed_out(list(waiting.values()), timeout)
            for connection in ready:
                worker = waiting.pop(connection)
                try:
                    succeeded, answer, text = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionError):
                    failure = failure or worker.died()
                    continue
                answers[worker.rank] = answer
                if not succeeded:
                    failure = failure or worker.failed(text, answer)
            if failure:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return answers, failure


def _timed_out(workers: list[_Worker], timeout: float) -> RankError:
    time.sleep(0.5)  # the ranks are writing down where they stand
    where = "\n".join(f"--- rank {worker.rank}:\n{worker.output()}" for worker in workers)
    return RankError(workers[0].rank, f"no answer within {timeout:g} s from {len(workers)} ranks\n{where}")
