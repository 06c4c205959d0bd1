"""Which weights go and which come: pure functions over shards, one row a shard (docs/design.md §4).

Shapes: R rows (shards of equal size), k active slots, n entries.
"""

import torch

from nt_dist.sparsity.streams import gumbel, uniform


def choose_kept(
    rule: str, values: torch.Tensor, count: int, keys: torch.Tensor, positions: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Choose the ``count`` slots of each row that stay.

    Args:
        rule: "magnitude" (largest |w|), "soft_magnitude" (without replacement, with probability ∝ |w|^T: Gumbel top-k
            over T·log|w|; NeuroTrails, arXiv 2505.17909, §3) or "set" (of the positive the largest, of the negative
            the smallest, in proportion to how many there are; arXiv 1707.04780).
        values: fp32 masters of the active slots [R, k].
        count: Slots to keep, at most k.
        keys: int64 [R, 1], the rows' drop streams.
        positions: Integer positions of the slots in their shards [R, k].
        temperature: T of ``soft_magnitude``.

    Returns:
        bool [R, k]. Slots whose value is exactly 0 are kept only where a row has fewer than ``count`` others.
    """
    magnitude = values.abs()
    if rule == "soft_magnitude":
        score = gumbel(keys, positions).add_(magnitude.double().log_(), alpha=temperature)  # log 0 = -inf: never first
    elif rule == "magnitude":
        score = magnitude
    else:
        assert rule == "set", rule
        score = _rank_within_sign(values)
    kept = torch.zeros_like(values, dtype=torch.bool)
    return kept.scatter_(1, score.topk(count, dim=1, sorted=False).indices, True)


def _rank_within_sign(values: torch.Tensor) -> torch.Tensor:
    """Return for each value the share of its row's values of the same sign that are nearer to 0; -1 for 0 itself."""
    score = torch.full_like(values, -1.0, dtype=torch.float64)
    for sign in (1.0, -1.0):
        side = values * sign > 0
        size = torch.where(side, values.abs(), torch.inf)
        order = size.argsort(dim=1, stable=True)
        places = torch.arange(values.shape[1], device=values.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        score = torch.where(side, (rank + 0.5) / side.sum(1, keepdim=True).clamp(min=1), score)
    return score


def choose_grown(
    rule: str,
    gradient: torch.Tensor | None,
    closed: torch.Tensor,
    dropped: torch.Tensor,
    count: int,
    keys: torch.Tensor,
) -> torch.Tensor:
    """Choose the ``count`` open entries of each row that become active.

    Args:
        rule: "gradient" (largest |dense gradient|, RigL) or "random" (SET). Entries of gradient 0, as in the embedding
            rows of tokens that did not occur, say nothing for or against themselves: of these, what was only just
            dropped comes back first, value and moments untouched, then others, both in the stream's order.
        gradient: Dense gradient [R, n]; not used by "random".
        closed: bool [R, n], entries that may not be chosen: those that are kept, and padding.
        dropped: bool [R, n], entries that this update has dropped; they are open.
        count: Entries to choose in each row.
        keys: int64 [R, 1], the rows' grow streams.

    Returns:
        int64 [R, count], positions in no particular order.
    """

    def draws() -> torch.Tensor:
        return uniform(keys, torch.arange(closed.shape[1], device=closed.device).expand(closed.shape[0], -1))

    if rule == "random":
        return draws().masked_fill_(closed, -1.0).topk(count, dim=1, sorted=False).indices
    assert rule == "gradient", rule
    score = gradient.abs().float().masked_fill_(closed, -2.0)
    best = score.topk(count, dim=1, sorted=False)
    if count == 0 or bool((best.values > 0).all()):
        return best.indices
    undecided = draws().float().clamp_(max=0.9999).sub_((~dropped).float()).sub_(1.0)  # in [-2, 0)
    return torch.where(score == 0, undecided, score * 2).topk(count, dim=1, sorted=False).indices
