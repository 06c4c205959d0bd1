"""How differently T trails predict N tokens, how much of the ensemble's uncertainty that is, and whether that tells
other data from what it was trained on.

Each sample (a sequence of tokens, or one answer) gets a few scores, means over its tokens of an uncertainty, and these
are kept. Telling shifted samples from unshifted ones by a score is a detector, judged over all its thresholds
(Hendrycks and Gimpel, arXiv 1610.02136; with ensembles Lakshminarayanan et al., arXiv 1612.01474, section 3.5). Shifted
samples are the positive class; a higher score says shifted.
"""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch

from nt_dist.evaluation.predictions import Device, Predictions, Sums

SCORES = ("entropy", "mutual_information", "max_probability")
"""Of the mean of probabilities: predictive entropy, mutual information (both in nats), negative confidence."""


class DiversitySums(Sums):
    """Sums of the divergences of each pair of trails and of the uncertainties."""

    def __init__(self, num_trails: int, device: Device = "cpu"):
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


class SequenceScores:
    """Scores of the samples seen so far, on the device of the predictions."""

    def __init__(self, device: Device = "cpu"):
        self.device = device
        self._batches: list[torch.Tensor] = []  # of each: sums of the scores and of the weights [B, 4]

    def begin(self, num_rows: int) -> None:
        """Announce a batch of so many samples, whose tokens come in any number of chunks."""
        self._batches.append(torch.zeros(num_rows, len(SCORES) + 1, dtype=torch.float64, device=self.device))

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of the batch's tokens."""
        confidence = predictions.highest[0][-2]
        scores = [predictions.entropy[-1], predictions.mutual_information, -confidence, torch.ones_like(confidence)]
        weighted = torch.stack(scores, 1).double() * predictions.weights[:, None]
        self._batches[-1].index_add_(0, predictions.rows, weighted)

    def gather(self, mesh) -> np.ndarray:
        """The scores of all ranks' samples that have a real token [samples, 3]; a collective of all ranks."""
        mine = torch.cat([torch.zeros(0, len(SCORES) + 1, dtype=torch.float64, device=self.device), *self._batches])
        longest = mesh.all_reduce(torch.tensor([len(mine)], device=self.device), ("pipe", "data"), op="max").item()
        every = mine.new_zeros(mesh.data.degree, longest, mine.shape[1])
        every[mesh.data.rank, : len(mine)] = mine  # only the last stage of a pipeline has any: the others add zeros
        every = mesh.all_reduce(every, ("pipe", "data")).flatten(0, 1)
        every = every[every[:, -1] > 0]
        return (every[:, :-1] / every[:, -1:]).cpu().numpy()


def detection(unshifted: np.ndarray, shifted: np.ndarray) -> dict[str, dict[str, float]]:
    """How well each of SCORES tells shifted samples from unshifted ones, given the scores [samples, 3] of both.

    Returns:
        Each with a figure for each of SCORES:
        auroc: area under the receiver operating characteristic (Hanley and McNeil, Radiology 143, 1982).
        aupr: average precision, the area under the precision-recall curve without interpolation (Davis and Goadrich,
            ICML 2006, on why not); a detector that knows nothing has the share of shifted samples.
        fpr95: share of the unshifted that are flagged at the highest threshold that flags 95 % of the shifted (Liang et
            al., arXiv 1706.02690, section 4, who call the unshifted positive).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve  # takes a second

    def fpr95(is_shifted: np.ndarray, scores: np.ndarray) -> float:
        false, true, _ = roc_curve(is_shifted, scores, drop_intermediate=False)
        return false[np.argmax(true >= 0.95)]

    def told(measure: Callable, scores: np.ndarray) -> float:  # those of a model that has diverged tell nothing
        return math.nan if np.isnan(scores).any() else float(measure(is_shifted, scores))

    is_shifted = np.repeat([0, 1], [len(unshifted), len(shifted)])
    columns = dict(zip(SCORES, np.concatenate([unshifted, shifted]).T, strict=True))
    measures = {"auroc": roc_auc_score, "aupr": average_precision_score, "fpr95": fpr95}
    return {name: {score: told(measure, columns[score]) for score in SCORES} for name, measure in measures.items()}
