"""Temperature scaling: one number a predictor that makes its probabilities mean what they say.

Guo et al., arXiv 1706.04599, section 4.2: p ∝ exp(z / τ) with the τ > 0 of least negative log-likelihood on held-out
tokens. A trail's z are its logits, so are the mean of logits'; those of the mean of probabilities are its logarithms
(the ensemble is scaled after it is pooled, as Rahaman and Thiery, arXiv 2007.08792, advise).
"""

import math
from collections.abc import Callable

import torch

from nt_dist.evaluation.predictions import Predictions

GRID = tuple(2 ** (step / 2) for step in range(-4, 5))
"""Inverse temperatures at which the likelihood is taken: 1/4 … 4, each √2 times the last."""


class TemperatureFit:
    """The temperatures of least negative log-likelihood, found in one pass over the tokens.

    The NLL is convex in β = 1 / τ. NLL and slope are summed over tokens at the points of GRID; the minimum lies where
    the slope changes sign, and is taken as that of the cubic in log β through both ends (Hermite's), which is right to
    about three digits. Where the slope keeps its sign the temperature is the end of the grid, 1/4 or 4.

    Args:
        num_predictors: P.
        device: Where the sums live.
    """

    def __init__(self, num_predictors: int, device: torch.device | str = "cpu"):
        # NLL and its slope in log β
        self.sums = torch.zeros(num_predictors, len(GRID), 2, dtype=torch.float64, device=device)
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        log_probs, weights = predictions.log_probs, predictions.weights
        for number, inverse in enumerate(GRID):
            scaled = log_probs * inverse  # [P, N, V]
            normaliser = predictions.place.log_sum_exp(scaled)  # [P, N]
            expected = predictions.over_classes(scaled.sub_(normaliser[..., None]).exp_(), log_probs)
            nll = normaliser + inverse * predictions.nll
            slope = inverse * (expected + predictions.nll)  # d/d log β = β d/dβ
            self.sums[:, number] += torch.stack([(each.double() * weights).sum(-1) for each in (nll, slope)], -1)
        self.tokens += weights.sum()

    def reduce(self, all_reduce: Callable[[torch.Tensor], object]) -> None:
        """Adds up the sums of all ranks that saw other tokens, by `all_reduce` (a sum in place)."""
        all_reduce(self.sums)
        all_reduce(self.tokens)

    def temperatures(self) -> list[float]:
        """The temperatures [P].

        Raises:
            ValueError: No token was added.
        """
        if self.tokens <= 0:
            raise ValueError("a temperature needs at least one real token (of weight > 0) to be fitted on")
        sums = (self.sums / self.tokens).tolist()
        return [1 / _lowest([nll for nll, _ in points], [slope for _, slope in points]) for points in sums]


def _lowest(values: list[float], slopes: list[float]) -> float:
    """The inverse temperature between GRID's ends at which a function with one minimum has it."""
    above = next((number for number, slope in enumerate(slopes) if slope >= 0), len(GRID))
    if above in (0, len(GRID)):
        return GRID[0] if above == 0 else GRID[-1]
    (y0, y1), (d0, d1) = values[above - 1 : above + 1], slopes[above - 1 : above + 1]
    width = math.log(GRID[above] / GRID[above - 1])
    d0, d1 = d0 * width, d1 * width

    def slope(t: float) -> float:
        return 6 * (t * t - t) * (y0 - y1) + (3 * t * t - 4 * t + 1) * d0 + (3 * t * t - 2 * t) * d1

    low, high = 0.0, 1.0  # slope(0) = d0 < 0 <= d1 = slope(1)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return GRID[above - 1] * (GRID[above] / GRID[above - 1]) ** high
