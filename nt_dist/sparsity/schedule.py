"""When the topology is updated, and what share of the active weights is dropped then.

The cosine is RigL's (arXiv 1911.11134, eq. 1), between the first fraction and a hundredth of it (0.5 → 0.005 in the
NeuroTrails paper's code) instead of zero.
"""

import math

FLOOR = 0.01  # the last fraction as a share of the first


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
    """Return the share of active weights that an update at ``step`` drops.

    Args:
        step: Optimizer step, from 1.
        first: Share at the start, in [0, 1].
        schedule: "cosine", "linear" or "constant".
        total_steps: Steps of the whole run.
        stop_fraction: Share of the run with updates.
    """
    done = min(step / max(last_update_step(total_steps, stop_fraction), 1), 1.0)
    if schedule == "constant":
        return first
    if schedule == "linear":
        return first * (1.0 - (1.0 - FLOOR) * done)
    assert schedule == "cosine", schedule
    return first * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * done)))
