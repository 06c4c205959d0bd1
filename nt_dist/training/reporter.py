"""Everything that the main rank shows and writes of a run while it goes on; no other rank has one."""

from pathlib import Path
from typing import Any

from nt_dist.config.family import Family
from nt_dist.evaluation.topology import Overlap
from nt_dist.messages import LOGGER, BarHandler, ProgressBar
from nt_dist.sparsity.weight import Weight
from nt_dist.training.metrics_log import METRICS, MetricsLog
from nt_dist.training.tensorboard import TensorBoard, pictured_weight

TENSORBOARD = "tensorboard"


class Reporter:
    """The progress bar, ``metrics.jsonl`` and TensorBoard of one run.

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
        handler: BarHandler,
    ):
        self._family, self._handler = family, handler
        self._metrics = MetricsLog(folder / METRICS, first_step)
        self._board = TensorBoard(folder / TENSORBOARD, first_step)
        self._pictured = pictured_weight(weights)
        self._bar = handler.bar = ProgressBar(last_step, first_step)
        if first_step == 0:
            self._board.topology(self._pictured, 0)

    def stepped(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Moves the bar."""
        self._bar.update(step, f"loss {loss:.4f}  {tokens_per_second:,.0f} {self._family.sample}s/s")

    def logged(self, record: dict[str, Any]) -> None:
        """Writes and draws one logged step, given as its line of ``metrics.jsonl``."""
        self._metrics.write(record)
        self._board.training(record)

    def noted(self, record: dict[str, Any]) -> None:
        """Writes what happened, given as its line of ``metrics.jsonl``: a bad step, other data."""
        self._metrics.write(record)

    def evaluated(self, record: dict[str, Any], overlap: Overlap | None) -> None:
        """Writes and draws one evaluation, given as its line of ``metrics.jsonl``, and the topology as it is then."""
        step, figures = record["step"], record["eval"]
        headline = self._family.headline(figures)
        self._metrics.write(record)
        self._board.evaluation(step, figures, headline, overlap)
        self._board.topology(self._pictured, step)
        LOGGER.info(
            "step %d: validation %s of the trails %s; of the ensemble %s; disagreement %.1f %%",
            step,
            headline.name,
            ", ".join(map(headline.text, headline.trails)),
            headline.text(headline.prob),
            100 * figures["disagreement"],
        )

    def lines_on_disk(self) -> int:
        """Sees ``metrics.jsonl`` on the disk, and returns how many lines are there for sure."""
        return self._metrics.settle()

    def close(self) -> None:
        """Writes what is still in memory and ends the bar."""
        self._handler.bar = None
        self._bar.close()
        self._board.close()
        self._metrics.close()
