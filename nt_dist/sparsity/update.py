"""One topology update of one weight: drop, regrow, and what becomes of values and moments (docs/design.md §4).

Nothing here communicates: the dense gradient that comes in is the same on all ranks that hold a copy of the shards, so
all of them compute the same new topology. A few shards at a time, so that the working memory is bounded and, on CPUs,
stays in the caches. R fragments, k active slots and n entries in each; else as in weight.py.
"""

from collections.abc import Callable

import torch

from nt_dist.config.settings import Sparsity
from nt_dist.sparsity.rules import choose_grown, choose_kept
from nt_dist.sparsity.streams import stream_keys
from nt_dist.sparsity.weight import Fragments, Weight, padding_mask

SECOND_MOMENT = "exp_avg_sq"
MakeKeys = Callable[[str, Fragments], torch.Tensor]  # of a purpose's streams, one row a fragment: int64 [R, 1]


@torch.no_grad()
def update_topology(
    weight: Weight,
    state: dict[str, torch.Tensor],
    gradient: torch.Tensor | None,
    rules: Sparsity,
    seed: int,
    step: int,
    fraction: float,
) -> torch.Tensor:
    """Give a sparse weight its new topology, and rewrite ``state`` to go with it; ``weight.values`` is left alone.

    A slot that continues an old one keeps its numbers, also if it was dropped and regrown in the same update. A new one
    starts with value and moments 0, but for AdamW's second moment, which may be its squared gradient ("gradient") or
    the mean over its shard's surviving slots ("mean").

    Args:
        state: fp32 "value" and moments by name, all shaped like ``weight.values``; changed in place.
        gradient: Its dense gradient [T, *local_shape], the same on all replicas; None if no rule needs it.
        seed, step: Parts of the streams' keys; ``step`` is the optimizer's.
        fraction: Share of each shard's slots that is dropped and regrown.

    Returns:
        Number of slots with a new place, int64 [] (reading it waits for the device).
    """
    device = weight.values.device

    def keys(purpose: str, fragments: Fragments) -> torch.Tensor:
        words = [(seed, purpose, weight.spec.name, trail, shard, step) for trail, shard in fragments]
        return stream_keys(words, device)[:, None]

    replaced = torch.zeros((), dtype=torch.int64, device=device)
    for fragments in weight.groups():  # a function each: what it works with is gone before the next begins
        replaced += _update_fragments(weight, fragments, state, gradient, rules, keys, fraction)
    return replaced


def _update_fragments(
    weight: Weight,
    fragments: Fragments,
    state: dict[str, torch.Tensor],
    gradient: torch.Tensor | None,
    rules: Sparsity,
    keys: MakeKeys,
    fraction: float,
) -> torch.Tensor | int:
    """Do what :func:`update_topology` does for some shards of equal size."""
    drop = round(fraction * weight.spec.slots(fragments[0][1]))
    if drop == 0:
        return 0
    old = weight.active(fragments)
    values = weight.read(state["value"], fragments, old)
    scores = None if gradient is None else weight.blocks(gradient, fragments)
    new, source = _choose(weight, fragments, old, values, scores, rules, keys, drop)
    is_new = source < 0
    weight.set_active(fragments, new)
    for name, tensor in state.items():
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


def _choose(
    weight: Weight,
    fragments: Fragments,
    old: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor | None,
    rules: Sparsity,
    keys: MakeKeys,
    drop: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return new positions, ascending, and the old slot that each continues, or -1: int64 [R, k] both."""
    spec, device = weight.spec, old.device
    count, slots = old.shape
    kept = choose_kept(rules.drop, values, slots - drop, keys("drop", fragments), old, rules.temperature)
    slot_at = torch.full((count, spec.shard_elements), -1, dtype=torch.int32, device=device)
    slot_at.scatter_(1, old, torch.arange(slots, dtype=torch.int32, device=device).expand_as(old))
    active = torch.zeros_like(slot_at, dtype=torch.bool).scatter_(1, old, kept)
    padding = padding_mask(spec, fragments[0][1], device)
    closed = active if padding is None else active | padding
    dropped = (slot_at >= 0).logical_and_(~active)
    grown = choose_grown(rules.grow, scores, closed, dropped, drop, keys("grow", fragments))
    new = active.scatter_(1, grown, True).nonzero()[:, 1].view_as(old)
    return new, slot_at.gather(1, new).long()
