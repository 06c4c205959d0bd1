"""Saves beside the training, one at a time: when each begins, is settled, is tried again, and what an error does."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.distributed import DistError

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.checkpoint import Part, Snapshot
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.engine.optimizer_state import OptimizerState
from nt_dist.errors import CheckpointError, DiskError
from nt_dist.files import FileEntry
from nt_dist.messages import LOGGER
from nt_dist.parallel.mesh import Mesh

RETRY_SECONDS = 5.0  # between two tries of a last save
LOOK_SECONDS = 0.5  # between two looks how far one has come
FINISH_SECONDS = 30.0  # for a save under way when an error has ended the run on one of several ranks
_WORD = TypeAdapter(Part | str)  # what a rank leaves word of, as JSON: whoever reaches the store can write there


class Saver:
    """Saves the run whenever it is told to, one save at a time; every rank has one, and all are told the same.

    A save beside the training stops it only while the state is copied to host memory and, some steps later, while all
    ranks agree that their files are on the disk. Until then the checkpoints before it are the newest that there are.

    What the disk refuses is tried again: a last save for ``run.save_patience`` seconds, during which ``beat`` is
    called; another one, with what the run is then, when so many have passed.

    Attributes:
        latest: The newest checkpoint of this process: saved, or (set by the caller) started from.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        mesh: Mesh,
        model: nn.Module,
        optimizer_state: OptimizerState,
        beat: Callable[[], None] = lambda: None,
    ):
        self.folder, self.config, self.mesh, self.beat = folder, config, mesh, beat
        self.model, self.optimizer_state = model, optimizer_state
        self.latest: Path | None = None
        self._again_at: float | None = None  # when a save that was refused is to be made up for
        # the save under way: where to, what, and this rank's writing of it
        self._flight: tuple[Path, Snapshot, Future[dict[str, FileEntry]]] | None = None
        self._writer = ThreadPoolExecutor(1, "saving")  # hashing and writing leave the interpreter to others
        self._begun = 0  # saves, the same on every rank

    @property
    def is_under_way(self) -> bool:
        """Whether a save has begun and is not yet a checkpoint; the same on every rank."""
        return self._flight is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank is still writing its part of it."""
        return self._flight is not None and not self._flight[2].done()

    @property
    def is_overdue(self) -> bool:
        """Whether a save that the disk refused is to be made up for now, by this rank's clock."""
        return self._again_at is not None and time.monotonic() >= self._again_at

    def save(self, training_state: TrainingState, is_last: bool) -> None:
        """Save the run as it stands, after any save under way; one that fails is a warning. Collective.

        ``is_last``, with which this process ends, is waited for; if it fails, that is a CheckpointError on every rank.
        """
        self.settle()
        try:
            state = copy.deepcopy(training_state)  # it is written at the commit, steps later
            snapshot = checkpoint.collect(self.config, self.mesh, self.model, self.optimizer_state, state)
            if is_last:
                self._write_patiently(snapshot)
            else:
                self._begin(snapshot)
                if not self.config.run.async_save:
                    self._finish()
        except CheckpointError as problem:
            if is_last:
                raise
            self._note(training_state.step, problem)

    def settle(self) -> None:
        """Make a checkpoint of the save under way, if there is one; one that fails is a warning. Collective.

        Waits for the ranks that are still writing.
        """
        if self._flight is not None:
            step = self._flight[1].manifest.training_state.step
            try:
                self._finish()
            except CheckpointError as problem:
                self._note(step, problem)

    def _note(self, step: int, problem: CheckpointError) -> None:
        LOGGER.warning("step %d was not saved: %s", step, problem)
        if isinstance(problem, DiskError) and self.config.run.save_patience:
            self._again_at = time.monotonic() + self.config.run.save_patience

    def _write_patiently(self, snapshot: Snapshot) -> None:
        until, is_said = time.monotonic() + self.config.run.save_patience, False
        while True:
            try:
                self._begin(snapshot)
                return self._finish()
            except DiskError as problem:
                if not self.mesh.broadcast_object(time.monotonic() < until):
                    raise
                if not is_said:
                    LOGGER.warning("%s; tried again for %g s", problem, self.config.run.save_patience)
                is_said = True
            self.beat()
            time.sleep(min(RETRY_SECONDS, self.config.run.save_patience))

    def _begin(self, snapshot: Snapshot) -> None:
        self._again_at = None
        writing = checkpoint.begin(self.folder, self.mesh, snapshot)
        self._begun += 1
        self._flight = writing, snapshot, self._writer.submit(self._write, self._begun, writing, snapshot)

    def _write(self, number: int, writing: Path, snapshot: Snapshot) -> dict[str, FileEntry]:
        """Write this rank's part of a save, and leave word of it for a rank that may have to finish the save alone."""
        word: Part | str = f"rank {self.mesh.rank} has not written its part"
        try:
            files = checkpoint.write_part(writing, snapshot)
            word = files, snapshot.manifest.weights
            return files
        except CheckpointError as problem:
            word = str(problem)
            raise
        finally:
            with contextlib.suppress(DistError):  # rank 0, which keeps it, is gone
                self.mesh.store.set(self._key(number, self.mesh.rank), _WORD.dump_json(word))

    @staticmethod
    def _key(number: int, rank: int) -> str:
        return f"save {number} of rank {rank}"

    def _finish(self) -> None:
        (writing, snapshot, written), self._flight = self._flight, None
        with self.mesh.working("writing") as beat:
            before = None
            while not written.done():
                wait([written], LOOK_SECONDS)
                if (done := snapshot.done(writing)) != before:
                    beat()
                before = done
        try:
            self.latest = checkpoint.commit(writing, self.config, self.mesh, snapshot, written.result)
        finally:
            with contextlib.suppress(DistError):
                self.mesh.store.delete_key(self._key(self._begun, self.mesh.rank))
        LOGGER.info("saved %s", self.latest)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """If an error ends the context, make a checkpoint of the save under way before it goes on, where that is
        possible.

        Of several ranks others may stand in a collective: their writing goes on meanwhile, so the first rank with an
        error can do the rest alone.
        """
        try:
            yield
        except Exception:
            if self.mesh.world_size == 1:
                self.settle()
            elif self._flight is not None:
                self._finish_alone()
            raise

    def _finish_alone(self) -> None:
        """Make a checkpoint of the save under way without a collective; one that cannot be made is a warning."""
        (writing, snapshot, _), self._flight = self._flight, None
        step, store, number = snapshot.manifest.training_state.step, self.mesh.store, self._begun
        patience = min(FINISH_SECONDS, self.config.run.stall_timeout / 2 or FINISH_SECONDS)
        try:
            if store.add(f"save {number} is finished by", 1) > 1:  # another rank does it; its store must stay meanwhile
                self._await([f"save {number} is over"], patience)
                return
            LOGGER.warning("an error ends the run, once step %d is saved; for that it has %g s", step, patience)
            try:
                keys = [self._key(number, rank) for rank in range(self.mesh.world_size)]
                self._await(keys, patience)
                parts = [_WORD.validate_json(store.get(key)) for key in keys]
                if problem := next((each for each in parts if isinstance(each, str)), None):
                    raise CheckpointError(problem)
                self.latest = checkpoint.put_in_place(writing, self.config, snapshot, parts)
                LOGGER.warning("saved %s", self.latest)
            finally:
                store.set(f"save {number} is over", "")
        except (CheckpointError, DistError, ValidationError) as problem:
            LOGGER.warning("step %d was not saved: %s", step, problem)

    def _await(self, keys: list[str], seconds: float) -> None:
        """Wait until the ranks have left word under all ``keys``; a CheckpointError if that takes too long."""
        until = time.monotonic() + seconds
        with self.mesh.working("writing") as beat:
            while missing := [key for key in keys if not self.mesh.store.check([key])]:
                if time.monotonic() > until:
                    raise CheckpointError(f"waited {seconds:g} s in vain for {', '.join(missing)}")
                time.sleep(LOOK_SECONDS / 5)
                beat()

    def close(self) -> None:
        """Leave a save under way as it is; the next one clears it away."""
        self._writer.shutdown(wait=False, cancel_futures=True)
