"""One topology update of one weight: drop, regrow, and what becomes of values and moments (docs/design.md §4).

Nothing here communicates: the dense gradient that comes in is the same on all ranks that hold a copy of the shards, so
all of them compute the same new topology. A few shards at a time, so that the working memory is bounded and, on CPUs,
stays in the caches. R fragments, k active slots and n entries in each; else as in weight.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nt_dist.config.settings import Sparsity
from nt_dist.sparsity.groups import Groups
from nt_dist.sparsity.rules import choose_grown, choose_kept
from nt_dist.sparsity.streams import stream_keys
from nt_dist.sparsity.weight import Fragments, Weight, padding_mask

SECOND_MOMENT = "exp_avg_sq"


class TopologyUpdate(NamedTuple):
    """Gives a sparse weight a new topology, and rewrites ``state`` to go with it; ``weight.values`` is left alone.

    A slot that continues an old one keeps its numbers, also if it was dropped and regrown in the same update. A new one
    starts with value and moments 0, but for AdamW's second moment, which may be its squared gradient ("gradient") or
    the mean over its shard's surviving slots ("mean").
    """

    weight: Weight
    state: dict[str, torch.Tensor]  # fp32 "value" and moments by name, all shaped like ``weight.values``
    gradient: torch.Tensor | None  # dense [T, *local_shape], the same on all replicas; None if no rule needs it
    rules: Sparsity
    seed: int
    step: int  # the optimizer's
    fraction: float  # of each shard's slots, which is dropped and regrown

    @torch.no_grad()
    def apply(self) -> torch.Tensor:
        """Do it; return the number of slots with a new place, int64 [] (reading it waits for the device)."""
        replaced = torch.zeros((), dtype=torch.int64, device=self.weight.values.device)
        for fragments in self.weight.groups():  # a call each: what it works with is gone before the next begins
            replaced += self._apply(fragments)
        return replaced

    def _apply(self, fragments: Fragments) -> torch.Tensor | int:
        weight, rules = self.weight, self.rules
        spec, shard, device = weight.spec, fragments[0][1], weight.values.device
        groups = Groups.of(spec, shard, device) if spec.group else None
        drop = round(self.fraction * (groups.units[1] if groups else spec.slots(shard)))
        if drop == 0:
            return 0
        old = weight.active(fragments)
        values = weight.read(self.state["value"], fragments, old)
        scores = None if self.gradient is None else weight.blocks(self.gradient, fragments)
        if groups:
            new, source = self._choose_units(groups, fragments, old, values, scores, drop)
        else:
            keys, padding = self._keys(fragments), padding_mask(spec, shard, device)
            new, source = self._choose(old, values, scores, drop, keys, spec.shard_elements, padding)
        is_new = source < 0
        weight.set_active(fragments, new)
        for name, tensor in self.state.items():
            entries = weight.read(tensor, fragments, old).gather(1, source.clamp(min=0))
            start = torch.zeros((), device=entries.device)
            if name == SECOND_MOMENT and rules.new_moments == "gradient":
                assert scores is not None, "new_moments = gradient needs the dense gradient"
                start = scores.gather(1, new).square()
            if name == SECOND_MOMENT and rules.new_moments == "mean":
                survivors = (~is_new).sum(1, keepdim=True).clamp(min=1)
                start = entries.masked_fill(is_new, 0.0).sum(1, keepdim=True) / survivors
            weight.write(tensor, fragments, new, torch.where(is_new, start, entries))
        return is_new.sum()

    def _choose_units(
        self,
        groups: Groups,
        fragments: Fragments,
        old: torch.Tensor,
        values: torch.Tensor,
        scores: torch.Tensor | None,
        drop: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what :meth:`_choose` does, where each group's units are chosen by their norms."""
        if scores is not None:
            scores = groups.norms(scores[:, : groups.rows * groups.columns].unflatten(1, (groups.rows, -1)))
        norms = groups.norms(values.unflatten(1, (groups.rows, -1)))
        keys = self._keys([(*fragment, group) for fragment in fragments for group in range(groups.count)])
        units = groups.inputs(old)[:, :, :: groups.width] // groups.width
        new, source = self._choose(units.flatten(0, 1), norms, scores, drop, keys, groups.units[0], None)
        return groups.positions(groups.spread(new.view_as(units))), groups.slots(source.view_as(units))

    def _choose(
        self,
        old: torch.Tensor,
        values: torch.Tensor,
        scores: torch.Tensor | None,
        drop: int,
        keys: dict[str, torch.Tensor],
        entries: int,
        padding: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new positions, ascending, and the old slot that each continues, or -1: int64 [R, k] both."""
        rules, device = self.rules, old.device
        count, slots = old.shape
        kept = choose_kept(rules.drop, values, slots - drop, keys["drop"], old, rules.temperature)
        slot_at = torch.full((count, entries), -1, dtype=torch.int32, device=device)
        slot_at.scatter_(1, old, torch.arange(slots, dtype=torch.int32, device=device).expand_as(old))
        active = torch.zeros_like(slot_at, dtype=torch.bool).scatter_(1, old, kept)
        closed = active if padding is None else active | padding
        dropped = (slot_at >= 0).logical_and_(~active)
        grown = choose_grown(rules.grow, scores, closed, dropped, drop, keys["grow"])
        new = active.scatter_(1, grown, True).nonzero()[:, 1].view_as(old)
        return new, slot_at.gather(1, new).long()

    def _keys(self, rows: Sequence[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Return the keys of the streams of (trail, shard) or (trail, shard, group), int64 [R, 1], by purpose."""
        name, device = self.weight.spec.name, self.weight.values.device
        return {
            purpose: stream_keys([(self.seed, purpose, name, *row[:2], self.step, *row[2:]) for row in rows], device)[
                :, None
            ]
            for purpose in ("drop", "grow")
        }
