"""One topology update of one weight: drop, regrow, and what becomes of values and moments (DESIGN §4).

Nothing here communicates: the dense gradient that comes in is the same on all ranks that hold a copy of the shards, so
all of them compute the same new topology. Shapes as in storage.py.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch

from nt_dist.sparsity.rules import choose_grown, choose_kept
from nt_dist.sparsity.shards import block_positions, flat_index, padding_mask, to_blocks
from nt_dist.sparsity.storage import Weight
from nt_dist.sparsity.streams import stream_keys

NEW_MOMENTS = ("zero", "gradient", "mean")


@dataclass(frozen=True)
class UpdateRules:
    """How topologies change: the settings of [sparsity], and the seed of the streams."""

    drop: str
    temperature: float
    grow: str
    new_moments: str
    seed: int


@dataclass(frozen=True)
class Rewrite:
    """The outcome of an update.

    Attributes:
        index: New flat places, int64 [T, slots], in slot order.
        source: The old slot each new slot continues, int64 [T, slots]; -1 for a new one.
    """

    index: torch.Tensor
    source: torch.Tensor

    @property
    def replaced(self) -> torch.Tensor:
        """Number of slots with a new place, a scalar tensor (reading it waits for the device)."""
        return (self.source < 0).sum()


@torch.no_grad()
def plan_update(
    weight: Weight, value: torch.Tensor, gradient: torch.Tensor | None, rules: UpdateRules, step: int, fraction: float
) -> Rewrite:
    """Choose the new topology of a weight; change nothing.

    Args:
        weight: A sparse weight.
        value: Its fp32 masters, shaped like ``weight.values``.
        gradient: Its dense gradient [T, *local_shape], the same on all replicas; None if ``rules.grow`` is "random".
        rules: The rules.
        step: Optimizer step, part of the streams' keys.
        fraction: Share of each shard's slots that is dropped and regrown.
    """
    spec, values, old = weight.spec, weight.to_slots(value), weight.slot_index()
    blocks = None if gradient is None else to_blocks(spec, gradient)
    index, source = old.clone(), torch.arange(weight.num_slots, device=old.device).repeat(len(weight.trails), 1)
    alike = defaultdict(list)  # shards of one slot count and one padding are rows of one tensor
    for number, (shard, start, stop) in enumerate(weight.slot_ranges()):
        alike[stop - start, spec.real_length(shard)].append((number, shard, start, stop))
    for (slots, _), group in alike.items():
        drop = round(fraction * slots)
        if drop == 0:
            continue
        rows = _Rows(weight, group, rules.seed, step)
        positions = rows.take(block_positions(spec, weight.shards, old))  # [R, slots]
        kept = choose_kept(rules.drop, rows.take(values), slots - drop, rows.keys("drop"), positions, rules.temperature)
        kept_positions = positions[kept].view(len(positions), slots - drop)
        closed = rows.padding.repeat(len(positions), 1).scatter_(1, kept_positions, True)  # [R, n]
        slot_at = torch.full(closed.shape, -1, dtype=torch.int32, device=old.device)
        slot_at.scatter_(1, positions, torch.arange(slots, dtype=torch.int32, device=old.device).expand_as(positions))
        dropped = (slot_at >= 0) & ~closed
        scores = None if blocks is None else torch.cat([blocks[:, number] for number, *_ in group])
        grown = choose_grown(rules.grow, scores, closed, dropped, drop, rows.keys("grow"))
        new = torch.cat([kept_positions, grown], dim=1).sort(dim=1).values
        rows.put(index, new, lambda shard, part: flat_index(spec, weight.shards, shard, part))
        came_from = slot_at.gather(1, new).long()
        rows.put(source, came_from, lambda shard, part: torch.where(part < 0, part, part + weight.slot_start(shard)))
    return Rewrite(index, source)


class _Rows:
    """Shards of equal size, of all local trails, as the rows of one tensor: row = shard in group · T + trail."""

    def __init__(self, weight: Weight, group: list[tuple[int, int, int, int]], seed: int, step: int):
        self.weight, self.group, self.seed, self.step = weight, group, seed, step
        padding = padding_mask(weight.spec, group[0][1], weight.values.device)
        if padding is None:
            padding = torch.zeros(weight.spec.shard_elements, dtype=torch.bool, device=weight.values.device)
        self.padding = padding

    def keys(self, purpose: str) -> torch.Tensor:
        """Return the rows' stream keys, int64 [R, 1]."""
        words = [
            (self.seed, purpose, self.weight.spec.name, trail, shard, self.step)
            for _, shard, _, _ in self.group
            for trail in self.weight.trails
        ]
        return stream_keys(words, self.weight.values.device)[:, None]

    def take(self, slots: torch.Tensor) -> torch.Tensor:
        """Return the group's part of [T, slots] as rows."""
        return torch.cat([slots[:, start:stop] for _, _, start, stop in self.group])

    def put(self, slots: torch.Tensor, rows: torch.Tensor, convert) -> None:
        """Write rows back into [T, slots], through ``convert(shard, part)``."""
        for (_, shard, start, stop), part in zip(self.group, rows.split(len(self.weight.trails)), strict=True):
            slots[:, start:stop] = convert(shard, part)


@torch.no_grad()
def apply_update(
    weight: Weight,
    rewrite: Rewrite,
    value: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    gradient: torch.Tensor | None,
    new_moments: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give ``weight`` its new topology and return value and moments to go with it (all shaped like ``weight.values``).

    A slot that continues an old one keeps its numbers, also if it was dropped and regrown in the same update. A new one
    starts with value 0, first moment 0, and a second moment of 0 ("zero"), of its squared gradient ("gradient") or of
    the mean over its shard's surviving slots ("mean").
    """
    is_new, old = rewrite.source < 0, rewrite.source.clamp(min=0)
    value, exp_avg, exp_avg_sq = (weight.to_slots(each).gather(1, old) for each in (value, exp_avg, exp_avg_sq))
    start = torch.zeros_like(exp_avg_sq)
    if new_moments == "gradient":
        assert gradient is not None, "new_moments = gradient needs the dense gradient"
        start = gradient.reshape(len(weight.trails), -1).gather(1, rewrite.index).square()
    elif new_moments == "mean":
        for _, first, last in weight.slot_ranges():
            survives = ~is_new[:, first:last]
            total = (exp_avg_sq[:, first:last] * survives).sum(1, keepdim=True)
            start[:, first:last] = total / survives.sum(1, keepdim=True).clamp(min=1)
    else:
        assert new_moments == "zero", new_moments
    weight.set_index(rewrite.index)
    zero = torch.zeros((), dtype=value.dtype, device=value.device)
    value, exp_avg = torch.where(is_new, zero, value), torch.where(is_new, zero, exp_avg)
    exp_avg_sq = torch.where(is_new, start, exp_avg_sq)
    return weight.from_slots(value), weight.from_slots(exp_avg), weight.from_slots(exp_avg_sq)
