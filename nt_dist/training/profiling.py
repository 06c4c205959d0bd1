"""A profile of some steps by torch.profiler, as ``run.profile`` asks for one, and the most memory that a rank has held.

The profile opens in Perfetto and TensorBoard.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from nt_dist.messages import LOGGER

PROFILE = "profile"  # the folder in a run's


class StepProfile:
    """The steps of ``span``, as "10:12" (empty: none), in one file; the main rank has one.

    A run that leaves in between, or a disk that does not take the file, leaves none.
    """

    def __init__(self, span: str, folder: Path, cuda: bool):
        self._first, self._last = map(int, span.split(":")) if span else (0, 0)
        self._path = folder / PROFILE / f"steps-{self._first}-{self._last}.pt.trace.json"
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self._running: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step."""
        if number == self._first:
            self._running = profile(activities=self._activities, record_shapes=True)
            self._running.start()
        with torch.profiler.record_function(f"step {number}"):
            yield
        if self._running and number >= self._last:
            running, self._running = self._running, None
            running.stop()
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                running.export_chrome_trace(str(self._path))
                LOGGER.info("profile of steps %d to %d: %s", self._first, self._last, self._path)
            except (OSError, RuntimeError) as problem:
                LOGGER.warning("%s: cannot be written: %s", self._path, problem)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this rank has held so far: on its GPU, or, without one, of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB
