"""Preemption: a signal asks the run to save and leave, and all ranks do so after the same step.

SIGTERM is what launchers and schedulers send to end a job, SIGUSR1 what SLURM is asked to send before the time limit
(launch_scripts/slurm.sbatch). A second one leaves at once, with 128 + its number, as a shell counts.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from nt_dist.parallel.mesh import Mesh

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LEFT_EARLY = 75
"""Exit code of a run that was asked to leave, has saved, and is not done: EX_TEMPFAIL, "try again" (sysexits.h)."""

SAME_SECONDS = 2.0  # a scheduler tells the launcher and the ranks, and the launcher tells the ranks again


class Asked:
    """Whether this rank has been asked to leave."""

    def __init__(self):
        self._at: float | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: remembers the first signal; at a later one leaves the process."""
        now = time.monotonic()
        if self._at is None:
            self._at = now
        elif now - self._at > SAME_SECONDS:
            os._exit(128 + number)

    def by_any(self, mesh: Mesh) -> bool:
        """Whether any rank has been asked; the same on every rank. All call it, after every step."""
        flag = torch.tensor(self._at is not None, dtype=torch.int32, device=mesh.device)
        return bool(mesh.all_reduce(flag, op="max"))


@contextmanager
def listening() -> Iterator[Asked]:
    """Listen to the signals for as long as the context lasts; before and after it they end the process as always."""
    asked = Asked()
    before = {number: signal.signal(number, asked.handle) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
