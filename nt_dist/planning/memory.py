"""Bytes of one rank in any layout: the model's state (training/memory_plan.py), activations, logits, the update.

What is alive at once in a step:

    forward, backward   state + A · activations + max(logits, a product's matrices, block computed again)
    an update step      state + dense gradients + the same, if they add up over several micro-batches; and
    the update itself   state + update (dense gradients, and the work on one weight)

where A micro-batches are in flight in a stage: min(stages - stage, micro-batches of a step) with DeepSpeed's
one-forward-one-backward schedule (Narayanan et al., arXiv 2104.04473, section 2.2), 1 without a pipeline.
"""

from dataclasses import dataclass

from nt_dist.config import Config
from nt_dist.parallel.parts import local_parts, stage_layers
from nt_dist.planning.activations import kept, logits_bytes, product_bytes, recomputed
from nt_dist.training.memory_plan import MemoryPlan, plan_memory


@dataclass(frozen=True)
class RankMemory:
    """Bytes of the first rank of one pipeline stage, the fullest of the stage.

    Attributes:
        state: Weights, masters, gradients, moments, index, the update and DeepSpeed's buffers.
        activations: Kept for backward, over the micro-batches in flight.
        logits: The most that the loss takes.
        work: The most that products and blocks computed again take.
        dense_gradients: Collected for a topology update.
        collects_over: Micro-batches whose dense gradients add up.
    """

    state: MemoryPlan
    activations: int
    logits: int
    work: int
    dense_gradients: int
    collects_over: int

    @property
    def ordinary(self) -> int:
        """The peak of a step without an update."""
        return self.state.total - self.state.update + self._passes

    @property
    def _passes(self) -> int:
        return self.activations + max(self.logits, self.work)

    @property
    def peak(self) -> int:
        """The peak of all steps."""
        passes = self._passes + (self.dense_gradients if self.collects_over > 1 else 0)
        return self.state.total - self.state.update + max(self.state.update, passes)


def rank_memory(config: Config, pipe_stage: int = 0) -> RankMemory:
    """Return the bytes of one rank of ``pipe_stage`` in the layout of ``config``."""
    layers = stage_layers(config)[pipe_stage]
    parts = local_parts(layers)
    settings = config.sparsity
    collects = settings.update_every > 0 and "gradient" in (settings.grow, settings.new_moments)
    in_flight = min(config.parallel.pipe - pipe_stage, config.accumulation_steps)
    return RankMemory(
        state=plan_memory(config, pipe_stage),
        activations=in_flight * kept(layers, config),
        logits=logits_bytes(layers, config),
        work=max(recomputed(layers, config), product_bytes(layers, config)),
        dense_gradients=4 * sum(part.entries for part in parts if part.spec.is_sparse) if collects else 0,
        collects_over=config.accumulation_steps if settings.regrow_from == "all" else 1,
    )


def fullest_stage(config: Config) -> tuple[int, RankMemory]:
    """Return the pipeline stage with the highest peak, and its memory."""
    stages = [(stage, rank_memory(config, stage)) for stage in range(config.parallel.pipe)]
    return max(stages, key=lambda each: each[1].peak)
