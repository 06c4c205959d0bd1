"""Bytes of one rank in any layout: the model's state (memory_plan.py), activations, logits, the update.

What is alive at once in a step:

    forward, backward   state + A · activations + max(logits, a product's matrices, block computed again) + exchange
                        + two gradients of a hidden state (of the residual stream and of the branch that joins it)
    an update step      state + dense gradients + the same, if they add up over several micro-batches; and
    the update itself   state + update (dense gradients, and the work on one weight)

where A micro-batches are in flight in a stage: min(stages - stage, micro-batches of a step) with DeepSpeed's
one-forward-one-backward schedule (Narayanan et al., arXiv 2104.04473, section 2.2), 1 without a pipeline. Its engine
(DeepSpeed 0.19.8) holds besides, as exchange: of what a stage receives a buffer and A copies, of what it sends A
results and a buffer for their gradient; on the last stage the logits of the micro-batch before. Those of its own stay
there all through the backward pass, beside its products.

The loss takes of logits of n bytes 2 n, with their gradient, and fp32 of some rows at a time; where their mean
over trails has a loss of its own, n more, as the gradients of both are added up. What a product takes in
backward is its storage's to say (``copies`` in sparsity/storages.py).
"""

from dataclasses import dataclass

from nt_dist.config import Config
from nt_dist.model.functions import AT_ONCE
from nt_dist.planning.local_layers import LayerPart, local_parts, stage_layers
from nt_dist.planning.memory_plan import MemoryPlan, plan_memory
from nt_dist.sparsity.storages import STORAGES


@dataclass(frozen=True)
class RankMemory:
    """Bytes of the first rank of one pipeline stage, the fullest of the stage.

    ``exchange`` is what the pipeline's engine holds of what travels between stages, and of earlier logits, and what the
    collectives at the fork of a split trunk hold, taken as two states so that the whole agrees with counts.
    """

    state: MemoryPlan
    activations: int  # kept for backward, over the micro-batches in flight
    logits: int  # the most that the loss takes
    work: int  # the most that products and blocks computed again take, and logits held meanwhile
    exchange: int
    hidden_gradients: int  # two of the widest hidden state
    dense_gradients: int  # collected for a topology update
    collects_over: int  # micro-batches whose dense gradients add up

    @property
    def ordinary(self) -> int:
        """The peak of a step without an update."""
        return self.state.total - self.state.update + self._passes

    @property
    def _passes(self) -> int:
        return self.activations + max(self.logits, self.work) + self.exchange + self.hidden_gradients

    @property
    def peak(self) -> int:
        """The peak of all steps."""
        passes = self._passes + (self.dense_gradients if self.collects_over > 1 else 0)
        return self.state.total - self.state.update + max(self.state.update, passes)


def rank_memory(config: Config, pipe_stage: int = 0) -> RankMemory:
    """Return the bytes of one rank of ``pipe_stage`` in the layout of ``config``."""
    stages = stage_layers(config)
    layers = stages[pipe_stage]
    parts, settings = local_parts(layers), config.sparsity
    collects = settings.update_every > 0 and "gradient" in (settings.grow, settings.new_moments)
    in_flight = min(config.parallel.pipe - pipe_stage, config.accumulation_steps)
    travelling = [stage[0].received_bytes for stage in stages[max(pipe_stage, 1) : pipe_stage + 2]]
    held_logits = layers[-1].logits_bytes if len(stages) > 1 else 0
    gathered = 2 * sum(layer.input_bytes for layer in layers if layer.forks and config.splits_trunk)
    return RankMemory(
        state=plan_memory(config, pipe_stage),
        activations=in_flight * sum(layer.kept_bytes for layer in layers),
        logits=_loss(layers[-1]),
        work=max(max(each.recomputed_bytes, _products(each)) for each in layers) + held_logits,
        exchange=(in_flight + 1) * sum(travelling) + (held_logits if config.accumulation_steps > 1 else 0) + gathered,
        hidden_gradients=2 * max(layer.state_bytes for layer in layers),
        dense_gradients=4 * sum(part.entries for part in parts if part.spec.is_sparse) if collects else 0,
        collects_over=config.accumulation_steps if settings.regrow_from == "all" else 1,
    )


def _loss(layer: LayerPart) -> int:
    """Bytes of the logits, their gradient, and what is computed of it at once: bf16 is made fp32 beside its result."""
    logits, element = layer.logits_bytes, layer.config.element_bytes
    copies = 3 if layer.config.trails.trained_mean == "logits" else 2
    return copies * logits + (4 if element == 4 else 8) * min(logits // element, AT_ONCE["cuda"])


def _products(layer: LayerPart) -> int:
    """The most that a layer's backward product takes, and the logits' gradient in the last."""
    copies = [(part, *STORAGES[part.storage].copies) for part in layer.parts if part.spec.uses]
    elements = max((entry * part.entries + slot * part.slots for part, entry, slot in copies), default=0)
    return layer.logits_bytes + layer.config.element_bytes * elements


def fullest_stage(config: Config) -> tuple[int, RankMemory]:
    """Return the pipeline stage with the highest peak, and its memory."""
    stages = [(stage, rank_memory(config, stage)) for stage in range(config.parallel.pipe)]
    return max(stages, key=lambda each: each[1].peak)
