"""Temperature scaling: one number a predictor that makes its probabilities mean what they say.

Guo et al., arXiv 1706.04599, section 4.2: p ∝ exp(z / τ) with the τ > 0 of least negative log-likelihood on held-out
tokens. A trail's z are its logits, so are the mean of logits'; those of the mean of probabilities are its logarithms
(the ensemble is scaled after it is pooled, as Rahaman and Thiery, arXiv 2007.08792, advise).
"""

import math

import torch

from nt_dist.evaluation.predictions import Predictions, Sums

GRID = tuple(2 ** (step / 2) for step in range(-4, 5))
"""Inverse temperatures at which the likelihood is taken: 1/4 … 4, each √2 times the last."""


class TemperatureFit(Sums):
    """The temperatures of least negative log-likelihood, found in one pass over the tokens.

    The NLL is convex in β = 1 / τ. NLL and slope are summed over tokens at the points of GRID; the minimum lies where
    the slope changes sign, and is taken as that of the cubic in log β through both ends (Hermite's), which is right to
    about three digits. Where the slope keeps its sign the temperature is the end of the grid, 1/4 or 4.

    Args:
        num_predictors: P.
        device: Where the sums live.
    """

    def __init__(self, num_predictors: int, device: torch.device | str = "cpu"):
        super().__init__(len(GRID), 3, num_predictors, device=device)  # NLL, its slope in log β, tokens

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        log_probs = predictions.log_probs
        for number, inverse in enumerate(GRID):
            scaled = log_probs * inverse  # [P, N, V]
            normaliser = predictions.place.log_sum_exp(scaled)  # [P, N]
            expected = predictions.over_classes(scaled.sub_(normaliser[..., None]).exp_(), log_probs)
            nll = normaliser + inverse * predictions.nll
            slope = inverse * (expected + predictions.nll)  # d/d log β = β d/dβ
            self.sums[number] += predictions.total(nll, slope, torch.ones_like(nll))

    def temperatures(self) -> list[float]:
        """The temperatures [P].

        Raises:
            ValueError: No token was added.
        """
        tokens = self.sums[0, 2, 0]
        if tokens <= 0:
            raise ValueError("a temperature needs at least one real token (of weight > 0) to be fitted on")
        values, slopes, _ = (self.sums / tokens).permute(1, 2, 0).tolist()
        return [1 / _lowest(*each) for each in zip(values, slopes, strict=True)]


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
