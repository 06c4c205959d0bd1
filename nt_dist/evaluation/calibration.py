"""Do probabilities mean what they say? Calibration, as streaming sums and one histogram.

Confidence is the highest probability, an answer is right if its class is the target (top-label calibration). Shapes: P
predictors (see predictions.py), N tokens. Of each bin of confidences there are sums over its tokens: of ones, of the
confidences, of the right answers, of the negative log-likelihoods and of the Brier scores.
"""

import numpy as np
import torch

from nt_dist.evaluation.predictions import Predictions, Sums

BINS = 15
"""Bins of the calibration errors and of the reliability diagram, as in Guo et al., arXiv 1706.04599."""
FINE_BINS = 1000 * BINS
"""Bins of the histogram of confidences that is kept: what equal-mass bins are cut from, to 1 / FINE_BINS."""


class CalibrationSums(Sums):
    """Streaming sums [P, FINE_BINS, 5], whatever the number of tokens.

    Args:
        num_predictors: P.
        device: Where the sums live; the predictions must be there too.
    """

    def __init__(self, num_predictors: int, device: torch.device | str = "cpu"):
        super().__init__(num_predictors, FINE_BINS, 5, device=device)

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        confidence, answer = predictions.highest  # [P, N]
        confidence = confidence.double().clamp_max(1.0)
        probs, nll = predictions.probs, predictions.nll
        # Σ over classes of (p - 1[target])², 0 .. 2 (Brier, Monthly Weather Review 78, 1950)
        brier = predictions.over_classes(probs, probs) - 2 * (-nll).exp() + 1
        figures = [torch.ones_like(confidence), confidence, answer == predictions.targets, nll, brier]
        figures = torch.stack([each.double() for each in figures], -1) * predictions.weights[:, None]  # [P, N, 5]
        # bins (low, high], as in Guo et al.
        bins = (confidence * FINE_BINS).ceil().long().sub_(1).clamp_(0, FINE_BINS - 1)
        self.sums.scatter_add_(1, bins[..., None].expand_as(figures), figures)

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        total = CalibrationSums(len(self.sums), self.sums.device)
        total.sums = self.sums + other.sums
        return total

    @property
    def tokens(self) -> float:
        """Sum of the weights so far."""
        return float(self.sums[0, :, 0].sum())

    def result(self) -> dict[str, list[float]]:
        """Mean over tokens of each predictor's nll (nats), accuracy, Brier score and calibration errors, each [P]."""
        histograms = self.sums.cpu().numpy()
        _, _, right, nll, brier = (histograms.sum(1).T / self.tokens).tolist()
        return {
            "nll": nll,
            "accuracy": right,
            "brier": brier,
            "ece": [calibration_error(equal_width(each)) for each in histograms],
            "adaptive_ece": [calibration_error(equal_mass(each)) for each in histograms],
        }

    def reliability(self) -> list[dict[str, list]]:
        """What each predictor's reliability diagram draws; see :func:`reliability`."""
        return [reliability(equal_width(each)) for each in self.sums.cpu().numpy()]


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


def reliability(bins: np.ndarray) -> dict[str, list]:
    """Of each bin its tokens, mean confidence and accuracy (None in an empty one)."""
    count, *sums = bins.T[:3].tolist()
    means = [[each / some if some else None for each, some in zip(column, count, strict=True)] for column in sums]
    return {"count": count, "confidence": means[0], "accuracy": means[1]}
