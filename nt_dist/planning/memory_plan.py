"""Bytes that one rank holds for the model's weights, from formulas; activations and logits come on top.

For a weight with n stored values (compact: its active slots; masked or dense: all entries), k active slots and e dense
entries, over D data ranks (what each stage divides: Rajbhandari et al., arXiv 1910.02054, section 3; the rest as found
in DeepSpeed 0.19.8 by tools/benchmark.py memory):

    weights     the compute copy: 4 n in fp32, 2 n in bf16; / D at stage 3
    masters     4 n / D, an fp32 copy of its own from stage 1 on; none at stage 0
    gradients   4 n, / D from stage 2; 4 n more at stage 0 with D > 1 (the all-reduce keeps its copy), 2 n more in bf16
                at stage 1 (bf16 gradients are added to fp32 ones)
    moments     4 n each (AdamW has two), / D from stage 1 on
    index       compact: 4 n (int32); masked: e (one byte an entry); on every rank
    update      between the backward pass of a topology update and its end: 4 e for every sparse weight's dense
                gradient, given back weight by weight, 4 n each for copies of the master and moments of the weight at
                hand, and what the update of a few of its shards at a time works with
    buffers     DeepSpeed's bucket of gradients (reduce_bucket_size; the bf16 optimizer of stage 1 has none), and at
                stage 3 with D > 1 the weights it keeps gathered (at most stage3_max_live_parameters)
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nt_dist.config import Config
from nt_dist.model.weights import count_parameters
from nt_dist.planning.local_layers import Part, local_parts, stage_layers
from nt_dist.sparsity.storages import STORAGES
from nt_dist.sparsity.weight import fragments_at_once

# What sparsity/update.py works with at once: bytes for each dense entry and each active slot of the shards at hand, at
# its three hungriest moments (the last, only in the embedding, is drawing lots among entries of gradient 0: rows of
# tokens that did not occur). Fitted to measurements of the default rules, within 6 %; a test repeats them.
_UPDATE_BYTES = ((4, 55), (14, 29), (38, 20))
_ROW_PARALLEL_BYTES = 12  # a slot, for the first moment: places in matrices cut along their columns are reckoned with
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
    collects = "gradient" in (settings.grow, settings.new_moments)
    peak = gradients = 0
    for part in reversed(sparse):  # from the last, so that the gradients still alive add up
        gradients += 4 * part.entries if collects else 0
        copies = 4 * (1 + len(config.train.moments)) * part.stored
        peak = max(peak, gradients + copies + _working(part, device_type))
    return peak


def _working(part: Part, device_type: str) -> int:
    share = min(1.0, fragments_at_once(part.spec, device_type) / (part.trails * part.shards))
    entries, slots = share * part.entries, share * part.slots
    (entry, slot), *others = _UPDATE_BYTES
    moments = [(entry, slot + (_ROW_PARALLEL_BYTES if part.spec.cut_axis else 0)), *others]
    if part.spec.role != "lookup":
        moments.pop()
    search = STORAGES[part.storage].search_bytes
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
