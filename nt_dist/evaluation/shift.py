"""Does the ensemble know when the text is not what it was trained on?

Each sequence gets a few scores, means over its tokens of an uncertainty, and these are kept: some numbers a sequence,
little beside its tokens. Telling shifted sequences from unshifted ones by a score is a detector, judged over all its
thresholds (Hendrycks and Gimpel, arXiv 1610.02136; with ensembles Lakshminarayanan et al., arXiv 1612.01474, section
3.5). Shifted sequences are the positive class; a higher score says shifted.
"""

import numpy as np
import torch

from nt_dist.evaluation.predictions import Predictions

SCORES = ("entropy", "mutual_information", "max_probability")
"""Of the mean of probabilities: predictive entropy, mutual information (both in nats), negative confidence."""


class SequenceScores:
    """Scores of the sequences seen so far.

    Args:
        device: Where the predictions are.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device
        self._batches: list[torch.Tensor] = []  # of each: sums of the scores and of the weights [B, 4]

    def begin(self, num_rows: int) -> None:
        """Announce a batch of so many sequences, whose tokens come in any number of chunks."""
        self._batches.append(torch.zeros(num_rows, len(SCORES) + 1, dtype=torch.float64, device=self.device))

    def add(self, predictions: Predictions) -> None:
        """Adds a chunk of the batch's tokens."""
        confidence = predictions.highest[0][-2]
        scores = [predictions.entropy[-1], predictions.mutual_information, -confidence, torch.ones_like(confidence)]
        weighted = torch.stack(scores, 1).double() * predictions.weights[:, None]
        self._batches[-1].index_add_(0, predictions.rows, weighted)

    def gather(self, mesh) -> np.ndarray:
        """The scores of all ranks' sequences that have a real token [sequences, 3]; a collective of all ranks."""
        mine = torch.cat([torch.zeros(0, len(SCORES) + 1, dtype=torch.float64, device=self.device), *self._batches])
        longest = mesh.all_reduce(torch.tensor([len(mine)], device=self.device), ("pipe", "data"), op="max").item()
        every = torch.zeros(mesh.data.degree, longest, mine.shape[1], dtype=torch.float64, device=self.device)
        every[mesh.data.rank, : len(mine)] = mine  # only the last stage of a pipeline has any: the others add zeros
        every = mesh.all_reduce(every, ("pipe", "data")).flatten(0, 1)
        every = every[every[:, -1] > 0]
        return (every[:, :-1] / every[:, -1:]).cpu().numpy()


def detection(unshifted: np.ndarray, shifted: np.ndarray) -> dict[str, dict[str, float]]:
    """How well each of SCORES tells shifted sequences from unshifted ones.

    Args:
        unshifted: Scores [sequences, 3].
        shifted: Scores [sequences, 3].

    Returns:
        auroc, aupr and fpr95, each with a figure for each of SCORES.
    """
    columns = zip(SCORES, unshifted.T, shifted.T, strict=True)
    curves = {score: threshold_curve(negative, positive) for score, negative, positive in columns}
    return {
        measure.__name__: {score: measure(*curve) for score, curve in curves.items()}
        for measure in (auroc, aupr, fpr95)
    }


def threshold_curve(negative: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of each class are flagged as the threshold falls: one point a distinct score, so that ties stay ties.

    Args:
        negative: Scores [n].
        positive: Scores [p].

    Returns:
        False and true positives, each beginning with 0 and ending with n and p.
    """
    scores = np.concatenate([negative, positive])
    is_positive = np.arange(len(scores)) >= len(negative)
    order = np.argsort(-scores, kind="stable")
    scores, is_positive = scores[order], is_positive[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of its score
    counts = [np.cumsum(flags)[last] for flags in (~is_positive, is_positive)]
    false, true = (np.concatenate([[0], each]) for each in counts)
    return false, true


def auroc(false: np.ndarray, true: np.ndarray) -> float:
    """Area under the receiver operating characteristic, by trapezoids: the chance that a random positive scores higher
    than a random negative, ties counting half (Hanley and McNeil, Radiology 143, 1982). Arguments: threshold_curve's.
    """
    return float(np.trapezoid(true / true[-1], false / false[-1]))


def aupr(false: np.ndarray, true: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision, Σ (recall gained) · precision, without interpolation
    (Davis and Goadrich, ICML 2006, on why not). A detector that knows nothing has the positives' share.
    """
    precision = true[1:] / (true[1:] + false[1:])
    return float((np.diff(true) / true[-1] * precision).sum())


def fpr95(false: np.ndarray, true: np.ndarray) -> float:
    """Share of the unshifted that are flagged at the highest threshold that flags 95 % of the shifted (Liang et al.,
    arXiv 1706.02690, section 4, who call the unshifted positive).
    """
    return float(false[np.argmax(true >= 0.95 * true[-1])] / false[-1])
