"""How differently T trails predict N tokens, and how much of the ensemble's uncertainty that is."""

import math
from itertools import combinations

import torch

from nt_dist.evaluation.predictions import Predictions, Sums


class DiversitySums(Sums):
    """Sums of the divergences of each pair of trails and of the uncertainties."""

    def __init__(self, num_trails: int, device: torch.device | str = "cpu"):
        super().__init__(3 * num_trails**2 + 4, device=device)
        # views of them: KL, JS and disagreement of each pair; three uncertainties, and the tokens
        self.pairs, self.scores = self.sums[:-4].view(3, num_trails, num_trails), self.sums[-4:]

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of tokens."""
        *trails, total = predictions.entropy.double()  # [N] each
        members = torch.stack(trails).mean(0)
        self.scores += predictions.total(total, members, predictions.mutual_information, torch.ones_like(total))
        answers = predictions.highest[1]
        for one, other in combinations(range(len(trails)), 2):
            p, log_p = predictions.probs[one], predictions.log_probs[one]
            q, log_q = predictions.probs[other], predictions.log_probs[other]
            difference, mean = log_p - log_q, torch.logaddexp(log_p, log_q) - math.log(2)
            partial = [p * difference, q * -difference, (p * (log_p - mean) + q * (log_q - mean)) / 2]
            there, back, js = predictions.place.sum_over_classes(torch.stack([each.sum(-1) for each in partial]))
            differs = answers[one] != answers[other]
            self.pairs[:, one, other] += predictions.total(there, js, differs)
            self.pairs[:, other, one] += predictions.total(back, js, differs)

    def result(self) -> dict[str, float | list[list[float]]]:
        """Means over the tokens; divergences and entropies in nats.

        Returns:
            kl: [T, T], row i and column j: KL(trail i || trail j) (Kullback and Leibler, 1951).
            js: [T, T], Jensen-Shannon divergence (Lin, IEEE Trans. Inf. Theory 37, 1991), 0 .. log 2.
            disagreement_matrix: [T, T], share of tokens on which the two likeliest classes differ (Fort et al., arXiv
                1912.02757, section 4, not normalised).
            kl_mean, js_mean: over the pairs of different trails; 0 with one trail.
            entropy_mean: predictive entropy, that of the mean of probabilities: the total uncertainty.
            entropy_members: mean of the trails' entropies: its aleatoric part.
            mutual_information: their difference, the epistemic part (Depeweg et al., arXiv 1710.07283, section 3).
        """
        *scores, tokens = self.scores.tolist()
        pairs = self.pairs / tokens
        num_pairs = max(1, pairs.shape[1] * (pairs.shape[1] - 1))
        kl_mean, js_mean, _ = (pairs.sum((1, 2)) / num_pairs).tolist()
        matrices = dict(zip(("kl", "js", "disagreement_matrix"), pairs.tolist(), strict=True))
        names = ("entropy_mean", "entropy_members", "mutual_information")
        uncertainties = {name: score / tokens for name, score in zip(names, scores, strict=True)}
        return {**matrices, "kl_mean": kl_mean, "js_mean": js_mean, **uncertainties}
