"""Bytes of one rank in any layout, from formulas: the model's state, activations, logits, the update.

The state, for a weight with n stored values (compact: its active slots; masked or dense: all entries), k active slots
and e dense entries, over D data ranks (what each stage divides: Rajbhandari et al., arXiv 1910.02054, section 3; the
rest as found in DeepSpeed 0.19.8 by tools/benchmark.py memory):

    weights     the compute copy: 4 n in fp32, 2 n in bf16; / D at stage 3
    masters     4 n / D, an fp32 copy of its own from stage 1 on; none at stage 0
    gradients   4 n, / D from stage 2; 4 n more at stage 0 with D > 1 (the all-reduce keeps its copy), 2 n more in bf16
                at stage 1 (bf16 gradients are added to fp32 ones)
    moments     4 n each (AdamW has two, an average of the weights is one more), / D from stage 1 on
    index       compact: 4 n (int32); masked: e (one byte an entry); on every rank
    update      between the backward pass of a topology update and its end: 4 e for every sparse weight's dense
                gradient, given back weight by weight, 4 n each for copies of the master and moments of the weight at
                hand, and what the update of a few of its shards at a time works with
    buffers     DeepSpeed's bucket of gradients (reduce_bucket_size; the bf16 optimizer of stage 1 has none), and at
                stage 3 with D > 1 the weights it keeps gathered (at most stage3_max_live_parameters)

What is alive at once in a step:

    forward, backward   state + A · activations + max(logits, a product's matrices, block computed again) + exchange
                        (with parallel.sequence_parallel the latter two and a state that was gathered)
                        + dense copies of compact weights, with train.keep_dense
                        + two gradients of a hidden state (of the residual stream and of the branch that joins it)
    an update step      state + dense gradients + the same, if they add up over several micro-batches; and
    the update itself   state + update (dense gradients, and the work on one weight)

where A micro-batches are in flight in a stage: min(stages - stage, micro-batches of a step) with DeepSpeed's
one-forward-one-backward schedule (Narayanan et al., arXiv 2104.04473, section 2.2), 1 without a pipeline. Its engine
(DeepSpeed 0.19.8) holds besides, as exchange: of what a stage receives a buffer and A copies, of what it sends A
results and a buffer for their gradient.

The loss takes of logits of n bytes 2 n, with their gradient, and fp32 of some rows at a time; where their mean
over trails has a loss of its own, n more, as the gradients of both are added up. Of logits that are computed in chunks
(model/chunks.py) n are those of one, and beside them stand the output matrix, where it is built, its gradient and that
of what it reads. What a product takes in backward is its storage's to say (``copies`` in sparsity/storages.py).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nt_dist.config import Config
from nt_dist.model.functions import AT_ONCE
from nt_dist.model.weights import count_parameters
from nt_dist.planning.local_layers import LayerPart, Part, local_parts, stage_layers
from nt_dist.sparsity.storages import STORAGES
from nt_dist.sparsity.weight import fragments_at_once

# -- the state --------------------------------------------------------------------------------------------------------

# What sparsity/update.py works with at once: bytes for each dense entry and each active slot of the shards at hand, at
# its three hungriest moments (the last, only in the embedding, is drawing lots among entries of gradient 0: rows of
# tokens that did not occur). Fitted to measurements of the default rules, within 6 %; a test repeats them.
_UPDATE_BYTES = ((6, 41), (9, 28), (28, 15))
_ROW_PARALLEL_BYTES = ((4, 65), (12, 40))  # of matrices cut along their columns, which are copied, and places reckoned
# DeepSpeed's defaults, in elements, where the JSON does not say.
_BUCKET, _LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one rank at a ZeRO stage; what each is, is said above. ``storages``: how many weights have each."""

    stage: int
    storages: dict[str, int]
    weights: int
    masters: int
    gradients: int
    moments: int
    index: int
    update: int
    buffers: int

    KINDS = ("weights", "masters", "gradients", "moments", "index", "update", "buffers")

    @property
    def total(self) -> int:
        """All kinds together: the dense gradients of an update live beside the ordinary ones."""
        return sum(getattr(self, kind) for kind in self.KINDS)


def plan_memory(config: Config, pipe_stage: int = 0, device_type: str = "cuda") -> MemoryPlan:
    """The bytes of one rank, the first of the tensor and of the trail axis, at `config`'s layout, stage and precision.

    ``device_type``, "cuda" or "cpu", says of how many shards at a time an update works on.
    """
    parts, stage, ranks = local_parts(stage_layers(config)[pipe_stage]), config.zero_stage, config.data_degree
    stored, copy = sum(part.stored for part in parts), config.element_bytes
    copied = 4 if stage == 0 and ranks > 1 else 2 if stage == 1 and copy == 2 else 0
    return MemoryPlan(
        stage,
        dict(Counter(sorted(part.storage for part in parts))),
        weights=_share(copy * stored, ranks if stage == 3 else 1),
        masters=_share(4 * stored, ranks) if stage else 0,
        gradients=_share(4 * stored, ranks if stage >= 2 else 1) + copied * stored,
        moments=_share(4 * len(config.train.moments) * stored, ranks if stage else 1),
        index=sum(part.index_bytes for part in parts),
        update=_update(config, [part for part in parts if part.spec.is_sparse], device_type),
        buffers=_buffers(config, stored),
    )


def at_stages(config: Config) -> list[Config]:
    """`config` at every ZeRO stage it may have (bf16 begins at 1)."""
    zero = config.deepspeed["zero_optimization"]
    stages = range(1 if config.train.precision == "bf16" else 0, 4)
    sections = [{**config.deepspeed, "zero_optimization": {**zero, "stage": stage}} for stage in stages]
    return [replace(config, deepspeed=each) for each in sections]


def plan_stages(config: Config) -> list[MemoryPlan]:
    """The plans of `config` at every ZeRO stage it may have."""
    return [plan_memory(each) for each in at_stages(config)]


def plan_table(config: Config, plans: Iterable[MemoryPlan]) -> str:
    """The plans as Markdown, in MiB and with the bytes per stored parameter."""
    stored = count_parameters(config)["stored"]
    rows = []
    for plan in plans:
        sizes = [*((kind, getattr(plan, kind)) for kind in MemoryPlan.KINDS), ("total (MiB)", plan.total)]
        rows.append(
            [
                ("ZeRO", str(plan.stage)),
                *((name, f"{size / 2**20:,.1f}") for name, size in sizes),
                ("bytes per stored parameter", f"{plan.total / stored:.1f}"),
                ("storages", ", ".join(f"{count} {name}" for name, count in plan.storages.items())),
            ]
        )
    return markdown(rows)


def markdown(rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A table of rows, each of (name of the column, cell)."""
    cells = [[name for name, _ in rows[0]], *([cell for _, cell in row] for row in rows)]
    header, *lines = (f"| {' | '.join(each)} |" for each in cells)
    return "\n".join([header, "|" + "---|" * len(rows[0]), *lines])


def _share(total: int, ranks: int) -> int:
    return math.ceil(total / ranks)


def _update(config: Config, sparse: list[Part], device_type: str) -> int:
    """The highest of all moments of an update, whose weights come one after the other."""
    settings = config.sparsity
    if settings.update_every == 0:
        return 0
    peak = gradients = 0
    for part in reversed(sparse):  # from the last, so that the gradients still alive add up
        gradients += 4 * part.entries if settings.uses_gradients else 0
        copies = 4 * (1 + len(config.train.moments)) * part.stored
        peak = max(peak, gradients + copies + _working(part, device_type))
    return peak


def _working(part: Part, device_type: str) -> int:
    share = min(1.0, fragments_at_once(part.spec, device_type) / (part.trails * part.shards))
    entries, slots = share * part.entries, share * part.slots
    moments, search = _UPDATE_BYTES, STORAGES[part.storage].search_bytes
    if part.spec.cut_axis:
        moments, search = _ROW_PARALLEL_BYTES, 0
    elif part.spec.role != "lookup":
        moments = moments[:2]
    return round(max(each * entries + (other + search) * slots for each, other in moments))


def _buffers(config: Config, stored: int) -> int:
    zero, stage, copy = config.deepspeed["zero_optimization"], config.zero_stage, config.element_bytes
    if stage == 0 or (stage == 1 and copy == 2):
        return 0
    buckets = 2 if zero.get("overlap_comm") and stage < 3 else 1
    # gradients travel in fp32, but are cast for it after the bucket below stage 3
    bucket = buckets * (4 if stage == 3 else copy) * zero.get("reduce_bucket_size", _BUCKET)
    gathered = copy * min(stored, zero.get("stage3_max_live_parameters", _LIVE))
    return bucket + (gathered if stage == 3 and config.data_degree > 1 else 0)


# -- a step -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankMemory:
    """Bytes of the first rank of one pipeline stage, the fullest of the stage.

    ``exchange`` is what the pipeline's engine holds of what travels between stages, and what the
    collectives at the fork of a split trunk hold, taken as two states so that the whole agrees with counts.
    """

    state: MemoryPlan
    built: int  # dense copies of compact weights that are kept over a step
    activations: int  # kept for backward, over the micro-batches in flight
    logits: int  # the most that the loss takes
    work: int  # the most that products and blocks computed again take
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
        return self.built + self.activations + max(self.logits, self.work) + self.exchange + self.hidden_gradients

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
    in_flight = min(config.parallel.pipe - pipe_stage, config.accumulation_steps)
    travelling = [stage[0].received_bytes for stage in stages[max(pipe_stage, 1) : pipe_stage + 2]]
    gathered = 2 * sum(layer.input_bytes for layer in layers if layer.forks and config.splits_trunk)
    return RankMemory(
        state=plan_memory(config, pipe_stage),
        built=config.element_bytes * config.train.keep_dense * sum(part.built for part in parts),
        activations=in_flight * sum(layer.kept_bytes for layer in layers),
        logits=_loss(layers[-1]),
        work=max(max(each.recomputed_bytes, _products(each)) + each.gathered_bytes for each in layers),
        exchange=(in_flight + 1) * sum(travelling) + gathered,
        hidden_gradients=2 * max(layer.state_bytes for layer in layers),
        dense_gradients=4 * sum(part.entries for part in parts if part.spec.is_sparse) * settings.uses_gradients,
        collects_over=config.accumulation_steps if settings.regrow_from == "all" else 1,
    )


def _loss(layer: LayerPart) -> int:
    """Bytes of the logits, their gradient, and what is computed of it at once: bf16 is made fp32 beside its result."""
    logits, element = layer.logits_bytes // max(layer.chunks, 1), layer.config.element_bytes
    copies = 3 if layer.config.trails.trained_mean == "logits" else 2
    loss = copies * logits + (4 if element == 4 else 8) * min(logits // element, AT_ONCE["cuda"])
    return loss if layer.chunks <= 1 else loss + element * _elements(layer) + layer.input_bytes


def _products(layer: LayerPart) -> int:
    """The most that a layer's backward product takes, and the logits' gradient in the last."""
    return 0 if layer.chunks > 1 else layer.logits_bytes + layer.config.element_bytes * _elements(layer)


def _elements(layer: LayerPart) -> int:
    copies = [(part, *STORAGES[part.storage].copies) for part in layer.parts if part.spec.uses]
    return max((entry * part.entries + slot * part.slots for part, entry, slot in copies), default=0)


def fullest_stage(config: Config) -> RankMemory:
    """Return the memory of the pipeline stage with the highest peak."""
    return max((rank_memory(config, stage) for stage in range(config.parallel.pipe)), key=lambda memory: memory.peak)
