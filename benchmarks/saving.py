"""How long the training stands still for a save: in its way, and beside it.

In each round a trainer saves once in each way, after the same number of ordinary steps. Beside the training a save
costs three things: the copy to host memory, the commit, and slower steps while it is written; all three are counted.
"""

import shutil
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.setup import build_bench, check, synchronizer
from benchmarks.timing import Clock, Spread
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.checkpoint.saving import Saver
from nt_dist.config import Config
from nt_dist.parallel.mesh import Mesh

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class SavingReport:
    """Seconds, of one save each.

    Attributes:
        size: Bytes of a checkpoint.
        step: An ordinary step with nothing beside it.
        synchronous: The training stands still for a save in its way.
        copy: Of a save beside it: until the training goes on.
        commit: Of the same: from the boundary at which all is written until the training goes on.
        slower: Of the same: what the steps meanwhile took longer than ordinary ones, all together.
        steps_beside: Steps that were done while it was written.
    """

    size: int
    step: Spread
    synchronous: Spread
    copy: Spread
    commit: Spread
    slower: Spread
    steps_beside: list[int] = field(repr=False)

    @property
    def still(self) -> Spread:
        """Of a save beside the training: the training stands still."""
        return Spread([sum(pair) for pair in zip(self.copy.rounds, self.commit.rounds, strict=True)])

    def table(self) -> str:
        """The report as Markdown."""
        lines = ["| seconds, median (range over rounds) | |", "|---|---|"]
        rows = {
            "an ordinary step": self.step,
            "synchronous: standing still": self.synchronous,
            "beside: standing still": self.still,
            "… for the copy": self.copy,
            "… for the commit": self.commit,
            "beside: steps slower meanwhile, all together": self.slower,
        }
        lines += [f"| {name} | {spread} |" for name, spread in rows.items()]
        beside = statistics.median(self.steps_beside)
        return "\n".join(
            [*lines, f"\nA checkpoint of {self.size / 2**20:,.1f} MiB; {beside:g} steps while it is written."]
        )

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        spreads = ("step", "synchronous", "copy", "commit", "slower")
        rounds = {name: getattr(self, name).rounds for name in spreads}
        return {"size": self.size, **rounds, "steps_beside": self.steps_beside}


def measure_saving(config: Config, mesh: Mesh, folder: Path, num_rounds: int, num_steps: int) -> SavingReport:
    """Trains and saves, in turns.

    Args:
        config: Sizes, precision, ZeRO stage.
        mesh: One rank.
        folder: On the disk to be measured; everything written there is deleted.
        num_rounds: Saves of each kind.
        num_steps: Ordinary steps before each, whose median is the ordinary step of a round.

    Raises:
        ConfigError: The config cannot be benchmarked.
        CheckpointError: A save failed.
    """
    check(config)
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="bench_saving_", dir=folder))
    try:
        return _measure(config, mesh, own, num_rounds, num_steps)
    finally:
        shutil.rmtree(own)


def _measure(config: Config, mesh: Mesh, folder: Path, num_rounds: int, num_steps: int) -> SavingReport:
    config = replace(config, run=replace(config.run, keep=1, keep_every=0, async_save=True))
    bench = build_bench(config, mesh)
    saver = Saver(folder, config, mesh, bench.engine.module, bench.state)
    clock = Clock(synchronizer(mesh.device))

    def step() -> float:
        return clock.seconds(bench.step, 1)

    for _ in range(WARM_UP_STEPS):
        step()
    rows, number = [], 0
    for _ in range(num_rounds):
        ordinary = statistics.median(step() for _ in range(num_steps))
        synchronous = clock.seconds(lambda number=number: saver.save(_progress(number + 1), is_last=True), 1)
        step()  # what the save has pushed out of the caches comes back
        copy = clock.seconds(lambda number=number: saver.save(_progress(number + 2), is_last=False), 1)
        meanwhile = []
        while saver.is_writing:
            meanwhile.append(step())
        commit = clock.seconds(saver.settle, 1)
        slower = sum(meanwhile) - ordinary * len(meanwhile)
        rows.append((ordinary, synchronous, copy, commit, slower, len(meanwhile)))
        number += 2
    saver.close()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())  # of the one that is kept
    *seconds, steps = (list(column) for column in zip(*rows, strict=True))
    return SavingReport(size, *map(Spread, seconds), steps)


def _progress(step: int) -> TrainingState:
    return TrainingState(step, step, step, "benchmark")
