"""Everything that the main rank shows and writes of a run while it goes on; no other rank has one."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nt_dist.config import Config
from nt_dist.config.family import Family
from nt_dist.evaluation.evaluate import SOURCES
from nt_dist.evaluation.topology import Overlap
from nt_dist.messages import LOGGER, BarHandler, ProgressBar
from nt_dist.model.weights import count_parameters, stored_density
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.weight import Weight
from nt_dist.training.metrics_log import METRICS, MetricsLog
from nt_dist.training.run_data import say_sources
from nt_dist.training.tensorboard import TensorBoard, curves_folder, of_evaluation, of_training, pictured_weight
from nt_dist.training.trackers import Trackers

TENSORBOARD = "tensorboard"
_DENSITY_MAY_DIFFER = 0.05  # of what was asked for, before a run says so


class Reporter:
    """The progress bar of each handler, ``metrics.jsonl``, TensorBoard and other loggers of one run.

    It goes on from ``first_step`` (0: from the start) and ends at ``last_step``. One of its weights is drawn. RunError
    if ``metrics.jsonl`` holds something else or cannot be cut; nothing that is written later ends a run.
    """

    def __init__(
        self,
        folder: Path,
        family: Family,
        first_step: int,
        last_step: int,
        weights: dict[str, Weight],
        handlers: Sequence[BarHandler],
        loggers: Sequence[str] = (TENSORBOARD,),
        settings: Mapping[str, Any] | None = None,
    ):
        self._family, self._handlers = family, [each for each in handlers if isinstance(each, BarHandler)]
        self._metrics = MetricsLog(folder / METRICS, first_step)
        self._board = (
            TensorBoard(curves_folder(folder, folder / TENSORBOARD), first_step) if TENSORBOARD in loggers else None
        )
        self._trackers = Trackers(loggers, folder, settings or {}, first_step)
        self._pictured = pictured_weight(weights)
        for handler in self._handlers:
            handler.bar = ProgressBar(last_step, first_step, stream=handler.own)
        if first_step == 0 and self._board:
            self._board.topology(self._pictured, 0)

    def stepped(self, step: int, loss: float, tokens_per_second: float, seconds: float) -> None:
        """Moves the bars, after a step that took so long."""
        for handler in self._handlers:
            handler.bar.update(step, f"loss {loss:.4f}  {tokens_per_second:,.0f} {self._family.sample}s/s", seconds)

    def logged(self, record: dict[str, Any]) -> None:
        """Writes and draws one logged step, given as its line of ``metrics.jsonl``."""
        self.noted(record)
        self._trackers.log(record["step"], of_training(record))
        if self._board:
            self._board.training(record)

    def noted(self, record: dict[str, Any]) -> None:
        """Writes what happened (a bad step, other data), given as its line of ``metrics.jsonl``, and when, in seconds
        since 1970."""
        self._metrics.write(record | {"time": round(time.time(), 3)})

    def evaluated(self, record: dict[str, Any], overlap: Overlap | None) -> None:
        """Writes and draws one evaluation, given as its line of ``metrics.jsonl``, and the topology as it is then."""
        step, figures = record["step"], record["eval"]
        headline = self._family.headline(figures)
        self.noted(record)
        sources = {name: self._family.headline(each) for name, each in figures.get(SOURCES, {}).items()}
        curves = of_evaluation(figures, headline, overlap, sources)
        self._trackers.log(step, curves)
        if self._board:
            self._board.draw(step, curves)
            self._board.topology(self._pictured, step)
        LOGGER.info(
            "step %d: validation %s of the trails %s; of the ensemble %s; disagreement %.1f %%",
            step,
            headline.name,
            ", ".join(map(headline.text, headline.trails)),
            headline.text(headline.prob),
            100 * figures["disagreement"],
        )
        for name, own in sources.items():
            trails, together = ", ".join(map(own.text, own.trails)), own.text(own.prob)
            LOGGER.info("  source %s: %s of the trails %s; of the ensemble %s", name, own.name, trails, together)

    def lines_on_disk(self) -> int:
        """Sees ``metrics.jsonl`` on the disk, and returns how many lines are there for sure."""
        return self._metrics.settle()

    def close(self) -> None:
        """Writes what is still in memory and ends the bar."""
        for handler in self._handlers:
            handler.bar.close()
            handler.bar = None
        if self._board:
            self._board.close()
        self._trackers.close()
        self._metrics.close()


def say_what_is_trained(config: Config, mesh: Mesh, samples: Any) -> None:
    """Logs the size of the model, what it runs on, and how often it goes over the training samples."""
    parameters, train = count_parameters(config), config.train
    model = f"{parameters['stored']:,} weights stored of {parameters['dense']:,}"
    trails = f"{config.trails.count} trails of {config.model.num_layers - config.trunk_layers} blocks"
    asked, stored = config.sparsity.density, stored_density(config)
    if abs(stored / asked - 1) > _DENSITY_MAY_DIFFER:
        LOGGER.warning("sparsity.density = %g: %.3g is stored; each shard of a weight keeps an entry", asked, stored)
    ranks = f"{mesh.world_size} ranks on {mesh.device.type}"
    LOGGER.info("model: %s, %s; %s, ZeRO %d, %s", model, trails, ranks, config.zero_stage, train.precision)
    epochs = train.steps * train.batch_size / len(samples)
    LOGGER.info("%d steps of %d samples are %.3g epochs", train.steps, train.batch_size, epochs)
    say_sources(samples, train.steps * train.batch_size)
