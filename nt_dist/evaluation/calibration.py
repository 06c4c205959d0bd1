"""Do probabilities mean what they say? Calibration of next-token predictions, as streaming sums and one histogram.

Confidence is the highest probability, an answer is right if its class is the target (top-label calibration). Shapes: P
predictors (see predictions.py), N tokens.
"""

from collections.abc import Callable

import numpy as np
import torch

from nt_dist.evaluation.predictions import Predictions

BINS = 15
"""Bins of the calibration errors and of the reliability diagram, as in Guo et al., arXiv 1706.04599."""
FINE_BINS = 1000 * BINS
"""Bins of the histogram of confidences that is kept: what equal-mass bins are cut from, to 1 / FINE_BINS."""


class CalibrationSums:
    """Streaming sums over tokens in float64; memory [P, FINE_BINS, 3] whatever the number of tokens.

    Args:
        num_predictors: P.
        device: Where the sums live; the predictions must be there too.
    """

    def __init__(self, num_predictors: int, device: torch.device | str = "cpu"):
        # of each fine bin: tokens, sum of confidences, right answers
        self.histogram = torch.zeros(num_predictors, FINE_BINS, 3, dtype=torch.float64, device=device)
        self.scores = torch.zeros(num_predictors, 2, dtype=torch.float64, device=device)  # sums of nll and Brier score

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        confidence, answer = predictions.highest  # [P, N]
        right = (answer == predictions.targets).double()
        confidence = confidence.double().clamp_max(1.0)
        weights = predictions.weights
        # bins (low, high], as in Guo et al.
        bins = (confidence * FINE_BINS).ceil().long().sub_(1).clamp_(0, FINE_BINS - 1)
        figures = torch.stack([torch.ones_like(right), confidence, right], -1) * weights[:, None]  # [P, N, 3]
        self.histogram.scatter_add_(1, bins[..., None].expand(-1, -1, 3), figures)
        scores = torch.stack([predictions.nll.double(), brier_scores(predictions).double()], -1)
        self.scores += (scores * weights[:, None]).sum(1)

    def reduce(self, all_reduce: Callable[[torch.Tensor], object]) -> None:
        """Adds up the sums of all ranks that saw other tokens, by `all_reduce` (a sum in place)."""
        all_reduce(self.histogram)
        all_reduce(self.scores)

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        total = CalibrationSums(len(self.scores), self.scores.device)
        total.histogram, total.scores = self.histogram + other.histogram, self.scores + other.scores
        return total

    @property
    def tokens(self) -> float:
        """Sum of the weights so far."""
        return float(self.histogram[0, :, 0].sum())

    def result(self) -> dict[str, list[float]]:
        """Mean over tokens of each predictor's nll (nats), accuracy, Brier score and calibration errors, each [P]."""
        tokens = self.tokens
        nll, brier = (self.scores.T / tokens).tolist()
        histograms = self.histogram.cpu().numpy()
        return {
            "nll": nll,
            "accuracy": (self.histogram[..., 2].sum(1) / tokens).tolist(),
            "brier": brier,
            "ece": [calibration_error(equal_width(each)) for each in histograms],
            "adaptive_ece": [calibration_error(equal_mass(each)) for each in histograms],
        }

    def reliability(self) -> list[dict[str, list]]:
        """The reliability diagram of each predictor; see :func:`reliability`."""
        return [reliability(equal_width(each)) for each in self.histogram.cpu().numpy()]


def brier_scores(predictions: Predictions) -> torch.Tensor:
    """Σ over classes of (p - 1[target])², 0 .. 2, of each token [P, N] (Brier, Monthly Weather Review 78, 1950)."""
    probs = predictions.probs
    return predictions.over_classes(probs, probs) - 2 * (-predictions.nll).exp() + 1


def equal_width(histogram: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Sums [bins, 3] of a fine histogram [FINE_BINS, 3] over bins of equal width; exact: fine bins lie within them."""
    return histogram.reshape(bins, -1, 3).sum(1)


def equal_mass(histogram: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Sums [bins, 3] of a fine histogram [FINE_BINS, 3] over bins of equally many tokens.

    A fine bin that a border cuts is shared out in proportion, as if its tokens were alike: their confidences differ by
    less than 1 / FINE_BINS.
    """
    running = np.concatenate([np.zeros((1, 3)), histogram.cumsum(0)])
    borders = np.linspace(0, running[-1, 0], bins + 1)
    cut = [np.interp(borders, running[:, 0], running[:, column]) for column in range(3)]
    return np.diff(np.stack(cut, -1), axis=0)


def calibration_error(sums: np.ndarray) -> float:
    """Expected calibration error, Σ over bins of their share of tokens · |accuracy - mean confidence|.

    With bins of equal width it is ECE (Guo et al., arXiv 1706.04599, equation 3); with bins of equal mass adaptive ECE
    (Nguyen and O'Connor, arXiv 1508.05154; Mukhoti et al., arXiv 2002.09437, section 2).

    Args:
        sums: Of each bin: tokens, confidences, right answers. [bins, 3]
    """
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / sums[:, 0].sum())


def reliability(sums: np.ndarray) -> dict[str, list]:
    """What a reliability diagram draws: of each bin its tokens, mean confidence and accuracy (None in an empty one).

    Args:
        sums: As for :func:`calibration_error`.
    """
    full = sums[:, 0] > 0
    means = [
        [each / count if some else None for each, count, some in zip(column, sums[:, 0], full, strict=True)]
        for column in (sums[:, 1], sums[:, 2])
    ]
    return {"count": sums[:, 0].tolist(), "confidence": means[0], "accuracy": means[1]}
