"""The saves of one run: beside the training or in its way, one at a time.

A save beside the training stops it only while the state is copied to host memory and, some steps later, while all
ranks agree that their files are on the disk and the checkpoint is given its name. Until then the checkpoints before it
are the newest that there are, whatever happens.
"""

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.engine.optimizer_state import OptimizerState
from nt_dist.errors import CheckpointError
from nt_dist.files import FileEntry
from nt_dist.messages import LOGGER
from nt_dist.parallel.mesh import Mesh


@dataclass(frozen=True)
class _Flight:
    """A save that is under way: where to, what, and this rank's writing of it."""

    writing: Path
    snapshot: checkpoint.Snapshot
    file: Future[dict[str, FileEntry]]


class Saver:
    """Saves the run whenever it is told to; every rank has one, and all are told the same.

    Args:
        folder: The folder of checkpoints.
        config, mesh, model, optimizer_state: See :func:`nt_dist.checkpoint.checkpoint.save`.

    Attributes:
        latest: The newest checkpoint of this process: saved, or (set by the caller) started from.
    """

    def __init__(self, folder: Path, config: Config, mesh: Mesh, model: nn.Module, optimizer_state: OptimizerState):
        self.folder, self.config, self.mesh = folder, config, mesh
        self.model, self.optimizer_state = model, optimizer_state
        self.latest: Path | None = None
        self._flight: _Flight | None = None
        self._writer = ThreadPoolExecutor(1, "saving")  # hashing and writing leave the interpreter to others

    @property
    def is_under_way(self) -> bool:
        """Whether a save has begun and is not yet a checkpoint; the same on every rank."""
        return self._flight is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank is still writing its part of it."""
        return self._flight is not None and not self._flight.file.done()

    def save(self, training_state: TrainingState, is_last: bool) -> None:
        """Save the run as it stands, after any save under way; one that fails is a warning. Collective.

        Args:
            training_state: Where the run stands.
            is_last: This process ends with it: it is waited for.

        Raises:
            CheckpointError: The last save failed; on every rank.
        """
        self.settle()
        try:
            state = copy.deepcopy(training_state)  # it is written at the commit, steps later
            snapshot = checkpoint.collect(self.config, self.mesh, self.model, self.optimizer_state, state)
            writing = checkpoint.begin(self.folder, self.mesh, snapshot)
            self._flight = _Flight(writing, snapshot, self._writer.submit(checkpoint.write_part, writing, snapshot))
            if is_last or not self.config.run.async_save:
                self._finish()
        except CheckpointError as problem:
            if is_last:
                raise
            LOGGER.warning("step %d was not saved: %s", training_state.step, problem)

    def settle(self) -> None:
        """Make a checkpoint of the save under way, if there is one; one that fails is a warning. Collective.

        Waits for the ranks that are still writing.
        """
        if self._flight is not None:
            step = self._flight.snapshot.manifest.training_state.step
            try:
                self._finish()
            except CheckpointError as problem:
                LOGGER.warning("step %d was not saved: %s", step, problem)

    def _finish(self) -> None:
        flight, self._flight = self._flight, None
        self.latest = checkpoint.commit(flight.writing, self.config, self.mesh, flight.snapshot, flight.file.result)
        LOGGER.info("saved %s", self.latest)

    def close(self) -> None:
        """Leave a save under way as it is; the next one clears it away."""
        self._writer.shutdown(wait=False, cancel_futures=True)
