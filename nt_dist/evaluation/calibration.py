"""Do probabilities mean what they say, and the temperatures that make them do so; P predictors, N tokens.

Confidence is the highest probability, an answer is right if its class is the target (top-label calibration).
"""

import math
from copy import copy

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline

from nt_dist.evaluation.predictions import Device, Predictions, Sums

BINS = 15
"""Bins of the calibration errors and of the reliability diagram, as in Guo et al., arXiv 1706.04599."""
FINE_BINS = 1000 * BINS
"""Bins of the histogram of confidences that is kept: what equal-mass bins are cut from, to 1 / FINE_BINS."""
GRID = tuple(2 ** (step / 2) for step in range(-4, 5))
"""Inverse temperatures at which the likelihood is taken: 1/4 … 4, each √2 times the last."""
TOP = 5
"""Classes that a classifier may name, as is customary for ImageNet."""


class CalibrationSums(Sums):
    """Of the tokens in each fine bin of confidences: sums of ones, confidences, right answers, nll and Brier scores,
    and, ``with_top``, of the answers among the TOP likeliest."""

    def __init__(self, num_predictors: int, device: Device = "cpu", with_top: bool = False):
        super().__init__(num_predictors, FINE_BINS, 5 + with_top, device=device)
        self.with_top = with_top

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        confidence, answer = predictions.highest  # [P, N]
        confidence = confidence.double().clamp_max(1.0)
        probs, nll = predictions.probs, predictions.nll
        # Σ over classes of (p - 1[target])², 0 .. 2 (Brier, Monthly Weather Review 78, 1950)
        brier = predictions.over_classes(probs, probs) - 2 * (-nll).exp() + 1
        figures = [torch.ones_like(confidence), confidence, answer == predictions.targets, nll, brier]
        if self.with_top:
            likelier = predictions.place.sum_over_classes((predictions.log_probs > -nll[..., None]).sum(-1))
            figures.append(likelier < TOP)
        figures = torch.stack([each.double() for each in figures], -1) * predictions.weights[:, None]  # [P, N, 5 or 6]
        # bins (low, high], as in Guo et al.
        bins = (confidence * FINE_BINS).ceil().long().sub_(1).clamp_(0, FINE_BINS - 1)
        self.sums.scatter_add_(1, bins[..., None].expand_as(figures), figures)

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        total = copy(self)
        total.sums = self.sums + other.sums
        return total

    @property
    def tokens(self) -> float:
        """Sum of the weights so far."""
        return float(self.sums[0, :, 0].sum())

    def result(self) -> dict[str, list[float]]:
        """Mean over tokens of each predictor's accuracy, nll (nats), Brier score and calibration errors, and of the
        answers among the TOP likeliest if they are wanted, each [P]."""
        histograms = self.sums.cpu().numpy()
        _, _, *means = (histograms.sum(1).T / self.tokens).tolist()
        return {
            **dict(zip(("accuracy", "nll", "brier", "top5"), means, strict=False)),
            "ece": [calibration_error(equal_width(each)) for each in histograms],
            "adaptive_ece": [calibration_error(equal_mass(each)) for each in histograms],
        }

    def reliability(self) -> list[dict[str, list]]:
        """What each predictor's diagram draws: of each bin its tokens, mean confidence and accuracy (None if empty)."""
        diagrams = []
        for bins in map(equal_width, self.sums.cpu().numpy()):
            count, *sums = bins.T[:3].tolist()
            means = [
                [each / some if some else None for each, some in zip(column, count, strict=True)] for column in sums
            ]
            diagrams.append({"count": count, "confidence": means[0], "accuracy": means[1]})
        return diagrams


def equal_width(histogram: np.ndarray) -> np.ndarray:
    """Sums [BINS, …] of a fine histogram [FINE_BINS, …] over bins of equal width; exact: fine bins lie within them."""
    return histogram.reshape(BINS, -1, histogram.shape[1]).sum(1)


def equal_mass(histogram: np.ndarray) -> np.ndarray:
    """Sums [BINS, …] of a fine histogram [FINE_BINS, …] over bins of equally many tokens.

    A fine bin that a border cuts is shared out in proportion, as if its tokens were alike: their confidences differ by
    less than 1 / FINE_BINS.
    """
    running = np.concatenate([np.zeros((1, histogram.shape[1])), histogram.cumsum(0)])
    borders = np.linspace(0, running[-1, 0], BINS + 1)
    return np.diff(np.stack([np.interp(borders, running[:, 0], each) for each in running.T], -1), axis=0)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error, Σ over bins of their share of tokens · |accuracy - mean confidence|.

    With bins of equal width it is ECE (Guo et al., arXiv 1706.04599, equation 3); with bins of equal mass adaptive ECE
    (Nguyen and O'Connor, arXiv 1508.05154; Mukhoti et al., arXiv 2002.09437, section 2).
    """
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


class TemperatureFit(Sums):
    """Temperature scaling (Guo et al., section 4.2): p ∝ exp(z / τ) with the τ > 0 of least NLL on held-out tokens.

    A trail's z are its logits, so are the mean of logits'; those of the mean of probabilities are its logarithms (the
    ensemble is scaled after it is pooled, as Rahaman and Thiery, arXiv 2007.08792, advise).

    The NLL is convex in β = 1 / τ. It and its slope are summed in one pass at the points of GRID; its minimum is taken
    as that of the cubics in log β through each two points (Hermite's), which is right to about three digits. Where the
    slope keeps its sign the temperature is the end of the grid, 1/4 or 4.
    """

    def __init__(self, num_predictors: int, device: Device = "cpu"):
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
        """The temperatures [P]; a ValueError if no token was added."""
        tokens = self.sums[0, 2, 0]
        if tokens <= 0:
            raise ValueError("a temperature needs at least one real token (of weight > 0) to be fitted on")
        values, slopes, _ = (self.sums / tokens).permute(1, 2, 0).tolist()
        return [1 / _lowest(*each) for each in zip(values, slopes, strict=True)]


def _lowest(values: list[float], slopes: list[float]) -> float:
    """The inverse temperature between GRID's ends at which the curve through ``values`` is lowest."""
    curve = CubicHermiteSpline(np.log(GRID), *np.nan_to_num([values, slopes]))  # nan: of a model that has diverged
    turns = curve.derivative().roots(extrapolate=False).tolist()  # nan where the curve is flat, which min passes over
    return math.exp(min([curve.x[0], curve.x[-1], *turns], key=curve))
