"""How differently the trails predict, and how much of the ensemble's uncertainty that is.

Shapes: T trails, N tokens, V classes.
"""

import math
from collections.abc import Callable

import torch

from nt_dist.evaluation.predictions import Predictions


class DiversitySums:
    """Streaming sums over tokens in float64.

    Args:
        num_trails: T.
        device: Where the sums live; the predictions must be there too.
    """

    def __init__(self, num_trails: int, device: torch.device | str = "cpu"):
        self.pairs = torch.zeros(3, num_trails, num_trails, dtype=torch.float64, device=device)  # KL, JS, disagreement
        self.scores = torch.zeros(4, dtype=torch.float64, device=device)  # three uncertainties, and the tokens

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        weights = predictions.weights
        entropy = predictions.entropy.double()  # [T + 1, N]
        scores = [entropy[-1], entropy[:-1].mean(0), predictions.mutual_information.double(), torch.ones_like(weights)]
        self.scores += (torch.stack(scores) * weights).sum(1)
        answers = predictions.highest[1]
        num_trails = self.pairs.shape[1]
        for one in range(num_trails):
            for other in range(one + 1, num_trails):
                there, back, js = divergences(predictions, one, other)
                differs = answers[one] != answers[other]
                kl, lk, js, differs = ((each.double() * weights).sum() for each in (there, back, js, differs))
                self.pairs[:, one, other] += torch.stack([kl, js, differs])
                self.pairs[:, other, one] += torch.stack([lk, js, differs])

    def reduce(self, all_reduce: Callable[[torch.Tensor], object]) -> None:
        """Adds up the sums of all ranks that saw other tokens, by `all_reduce` (a sum in place)."""
        all_reduce(self.pairs)
        all_reduce(self.scores)

    def result(self) -> dict[str, float | list[list[float]]]:
        """Means over the tokens; divergences and entropies in nats.

        Returns:
            kl: [T, T], row i and column j: KL(trail i || trail j) (Kullback and Leibler, 1951).
            js: [T, T], Jensen-Shannon divergence (Lin, IEEE Trans. Inf. Theory 37, 1991), 0 .. log 2.
            disagreement_matrix: [T, T], share of tokens on which the two likeliest tokens differ (Fort et al., arXiv
                1912.02757, section 4, not normalised).
            kl_mean, js_mean: over the pairs of different trails; 0 with one trail.
            entropy_mean: predictive entropy, that of the mean of probabilities: the total uncertainty.
            entropy_members: mean of the trails' entropies: its aleatoric part.
            mutual_information: their difference, the epistemic part (Depeweg et al., arXiv 1710.07283, section 3).
        """
        *scores, tokens = self.scores.tolist()
        pairs = self.pairs / tokens
        num_pairs = max(1, pairs.shape[1] * (pairs.shape[1] - 1))
        kl, js, disagreement = pairs.tolist()
        kl_mean, js_mean, _ = (pairs.sum((1, 2)) / num_pairs).tolist()
        names = ("entropy_mean", "entropy_members", "mutual_information")
        return {
            "kl": kl,
            "js": js,
            "disagreement_matrix": disagreement,
            "kl_mean": kl_mean,
            "js_mean": js_mean,
            **dict(zip(names, (score / tokens for score in scores), strict=True)),
        }


def divergences(predictions: Predictions, one: int, other: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL(one || other), KL(other || one) and the JS divergence of two trails, in nats, each [N]."""
    log_p, log_q = predictions.log_probs[one], predictions.log_probs[other]
    p, q = predictions.probs[one], predictions.probs[other]
    difference = log_p - log_q
    mean = torch.logaddexp(log_p, log_q) - math.log(2)
    partial = [p * difference, q * -difference, (p * (log_p - mean) + q * (log_q - mean)) / 2]
    there, back, js = predictions.place.sum_over_classes(torch.stack([each.sum(-1) for each in partial]))
    return there, back, js
