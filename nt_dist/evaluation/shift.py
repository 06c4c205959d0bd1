"""Does the ensemble know when the data is not what it was trained on?

Each sample (a sequence of tokens, or one answer) gets a few scores, means over its tokens of an uncertainty, and these
are kept. Telling shifted samples from unshifted ones by a score is a detector, judged over all its thresholds
(Hendrycks and Gimpel, arXiv 1610.02136; with ensembles Lakshminarayanan et al., arXiv 1612.01474, section 3.5). Shifted
samples are the positive class; a higher score says shifted.
"""

import numpy as np
import torch

from nt_dist.evaluation.predictions import Predictions

SCORES = ("entropy", "mutual_information", "max_probability")
"""Of the mean of probabilities: predictive entropy, mutual information (both in nats), negative confidence."""


class SequenceScores:
    """Scores of the samples seen so far, on the device of the predictions."""

    def __init__(self, device: torch.device | str = "cpu"):
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

    is_shifted = np.repeat([0, 1], [len(unshifted), len(shifted)])
    columns = dict(zip(SCORES, np.concatenate([unshifted, shifted]).T, strict=True))
    measures = {"auroc": roc_auc_score, "aupr": average_precision_score, "fpr95": fpr95}
    return {
        name: {score: float(measure(is_shifted, column)) for score, column in columns.items()}
        for name, measure in measures.items()
    }
