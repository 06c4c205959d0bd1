"""Real runs for the fault tests: ranks as a launcher starts them, without the launcher, which would clean up itself."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from nt_dist.training.metrics_log import read_metrics
from tests.e2e.commands import ROOT

WAIT = 240.0  # seconds for what takes a few on an idle machine


class Job:
    """Ranks of train.py; all that they say goes into one pipe each, which ends with the last process that holds it.

    Args:
        config: Path of the config.
        folder: ``run.dir``.
        size: Number of ranks.
        overrides: More settings.
    """

    def __init__(self, config: Path, folder: Path, size: int, *overrides: str):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "train.py", "--config", config, f"run.dir={folder}", *overrides]
        shared = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        if size == 1:
            shared = {name: value for name, value in shared.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
        self.ranks = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def wait_for_step(self, step: int) -> None:
        """Wait until ``step`` is logged."""
        self.wait_until(lambda: any(record["step"] >= step for record in read_metrics(self.folder / "metrics.jsonl")))

    def wait_until(self, holds, every: float = 0.05) -> None:
        """Wait until ``holds()``, asked every so many seconds; fail if a rank ends before."""
        until = time.monotonic() + WAIT
        while not holds():
            assert time.monotonic() < until, "this takes too long"
            ended = [rank for rank in self.ranks if rank.poll() is not None]
            assert not ended, ended[0].communicate()[1]
            time.sleep(every)

    def end(self, timeout: float = WAIT) -> tuple[list[int], list[str]]:
        """Wait for the end of all processes, watchers included; the ranks' exit codes and what each said."""
        said = [rank.communicate(timeout=timeout)[1] for rank in self.ranks]
        return [rank.returncode for rank in self.ranks], said

    def close(self) -> None:
        """End what is left."""
        for rank in self.ranks:
            rank.kill()
            rank.wait()
            rank.stderr.close()
