"""When the topology changes, how much of it, which weights go and which come (docs/design.md §4).

Shapes: R rows (shards of equal size), k active slots, n entries.
"""

import math

import torch

from nt_dist.sparsity.streams import gumbel, uniform

FLOOR = 0.01  # the last drop fraction as a share of the first


def last_update_step(total_steps: int, stop_fraction: float) -> int:
    """Return the step after which the topology no longer changes."""
    return int(total_steps * stop_fraction)


def is_update_step(step: int, update_every: int, total_steps: int, stop_fraction: float) -> bool:
    """Say whether the topology is updated after optimizer step ``step`` (counted from 1).

    An update after the very last step would leave new weights untrained: there is none.
    """
    if update_every <= 0 or step % update_every:
        return False
    return step <= last_update_step(total_steps, stop_fraction) and step < total_steps


def drop_fraction_at(step: int, first: float, schedule: str, total_steps: int, stop_fraction: float) -> float:
    """Return the share of active weights that an update at ``step`` drops: ``first`` at the start of the run.

    The cosine is RigL's (arXiv 1911.11134, eq. 1), down to a hundredth of the first share (as in the NeuroTrails
    paper's code) instead of zero. ``schedule`` may also be "linear" or "constant".
    """
    done = min(step / max(last_update_step(total_steps, stop_fraction), 1), 1.0)
    if schedule == "constant":
        return first
    if schedule == "linear":
        return first * (1.0 - (1.0 - FLOOR) * done)
    assert schedule == "cosine", schedule
    return first * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * done)))


def choose_kept(
    rule: str, values: torch.Tensor, count: int, keys: torch.Tensor, positions: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Choose the ``count`` slots of each row that stay.

    Args:
        rule: "magnitude" (largest |w|), "soft_magnitude" (without replacement, with probability ∝ |w|^T: Gumbel top-k
            over T·log|w|; NeuroTrails, arXiv 2505.17909, §3) or "set" (of the positive the largest, of the negative
            the smallest, in proportion to how many there are; arXiv 1707.04780).
        values: fp32 masters of the active slots [R, k], which lie at ``positions`` [R, k] of their shards.
        count: Slots to keep, at most k.
        keys: int64 [R, 1], the rows' drop streams.
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
        count, keys: Entries to choose in each row, and the rows' grow streams, int64 [R, 1].

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
