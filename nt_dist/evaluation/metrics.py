"""Losses and disagreement of an ensemble, as sums that can be added up over batches and ranks.

Everything is a sum over tokens until `EnsembleSums.means`, so batch size, ragged last batches and the number of ranks
do not change the figures (averages are never averaged).

Shapes: T trails, B samples, S positions (one where a sample has one answer), N tokens (B · S), V classes (padded ones
are -inf and count for nothing).
"""

from collections.abc import Callable

import torch

from nt_dist.evaluation.predictions import mean_of_probs
from nt_dist.model.place import Place

# Tokens whose logits are held in fp32 at once: bounds memory at [T, 1024, V] whatever the batch.
CHUNK_TOKENS = 1024


class EnsembleSums:
    """Streaming sums over tokens, in float64 on one device.

    Args:
        num_trails: T.
        device: Where the sums live; the logits must be there too.
        place: Which trails and classes are held here; figures are of all of them, and the sums the same on all ranks
            that hold parts of one model.
    """

    def __init__(self, num_trails: int, device: torch.device | str = "cpu", place: Place | None = None):
        assert num_trails >= 1
        self.num_trails, self.place = num_trails, place or Place()
        # nll of each trail [T], nll of the mean probability, nll of the mean logit, disagreement, tokens
        self.sums = torch.zeros(num_trails + 4, dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds one batch.

        Args:
            logits: [T, B, S, V], any floating type: the trails and classes held here.
            targets: [B, S], the token each position has to predict.
            weights: [B, S], 1 for a real token, 0 for padding (whose logits and targets are not looked at).
        """
        assert logits.shape[1:3] == targets.shape == weights.shape
        logits = logits.flatten(1, 2)  # [T, N, V]
        targets, weights = targets.flatten(), weights.flatten()  # [N]
        for start in range(0, targets.numel(), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            self._add_chunk(logits[:, part].float(), targets[part], weights[part].double())

    def _add_chunk(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        real = weights > 0
        targets = torch.where(real, targets, 0)  # a padded target may be any number
        nll = self.place.all_trails(self._losses(logits, targets))  # [T, N]
        assert len(nll) == self.num_trails, f"{len(nll)} trails in place of {self.num_trails}"
        mean_prob = mean_of_probs(-nll)  # [N]
        mean_logit = self._losses(self.place.mean_of_trails(logits)[None], targets)[0]  # [N]
        answers = self.place.all_trails(self.place.most_likely(logits))  # [T, N]
        ensemble = torch.stack([-mean_prob.double(), mean_logit.double(), disagreement(answers)])
        figures = torch.cat([nll.double(), ensemble])  # [T + 3, N]
        # where, not only a product: 0 * inf of a padded position would be nan
        figures = torch.where(real, figures, 0.0) * weights
        self.sums[:-1] += figures.sum(1)
        self.sums[-1] += weights.sum()

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Token losses [T, N] of logits [T, N, V]."""
        return self.place.token_losses(logits[:, None], targets[None])[:, 0]

    def reduce(self, all_reduce: Callable[[torch.Tensor], object]) -> None:
        """Adds up the sums of all ranks that saw other tokens, by one call of `all_reduce` (a sum in place)."""
        all_reduce(self.sums)

    def means(self) -> dict:
        """The figures of all samples added so far, for :meth:`nt_dist.config.family.Family.figures` to name.

        Returns:
            nll: mean negative log-likelihood in nats, {"trails": [T], "prob", "logit"}: of each trail, of the mean of
                their probabilities (what a deep ensemble predicts: Lakshminarayanan et al., arXiv 1612.01474, §2.4),
                of the softmax of the mean of their logits (what the NeuroTrails paper, arXiv 2505.17909, reports).
            disagreement: share of samples on which two trails' most likely classes differ, mean over pairs
                (Fort et al., arXiv 1912.02757, section 4, not normalised); 0 with one trail.
            count: sum of the weights.

        Raises:
            ValueError: no real sample was added.
        """
        *figures, count = self.sums.tolist()
        if count <= 0:
            raise ValueError("an evaluation needs at least one real token (of weight > 0)")
        *trails, by_prob, by_logit, differing = (each / count for each in figures)
        return {
            "nll": {"trails": trails, "prob": by_prob, "logit": by_logit},
            "disagreement": differing,
            "count": int(count) if count == int(count) else count,
        }


def disagreement(answers: torch.Tensor) -> torch.Tensor:
    """Share of the pairs of trails that answer differently.

    Args:
        answers: [T, N], each trail's most likely token.

    Returns:
        [N] float64 in 0 .. 1; zeros with one trail.
    """
    trails = answers.shape[0]
    differing = torch.zeros(answers.shape[1], dtype=torch.float64, device=answers.device)
    for first in range(trails):
        for second in range(first + 1, trails):
            differing += answers[first] != answers[second]
    return differing / max(1, trails * (trails - 1) // 2)
