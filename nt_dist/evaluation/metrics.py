"""Losses and disagreement of an ensemble: the figures of an evaluation during training.

Shapes: T trails, B samples, S positions, N tokens, V classes (padded ones are -inf and count for nothing).
"""

import torch

from nt_dist.evaluation.predictions import Sums, mean_of_probs, real_tokens
from nt_dist.model.place import Place

# Tokens whose logits are held in fp32 at once: bounds memory at [T, 1024, V] whatever the batch.
CHUNK_TOKENS = 1024


class EnsembleSums(Sums):
    """Sums of the losses, the disagreement and the weights; the same on all ranks that hold parts of one model.

    Args:
        num_trails: T, of the whole model.
        device: Where the logits are.
        place: Which trails and classes are held here; figures are of all of them.
    """

    def __init__(self, num_trails: int, device: torch.device | str = "cpu", place: Place | None = None):
        assert num_trails >= 1
        # nll of each trail [T], nll of the mean probability, nll of the mean logit, disagreement, tokens
        super().__init__(num_trails + 4, device=device)
        self.num_trails, self.place = num_trails, place or Place()

    def add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds one batch, as :func:`real_tokens` takes it."""
        for chunk in real_tokens(logits, targets, weights, CHUNK_TOKENS):
            self._add(*chunk)

    def _add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, _rows: torch.Tensor) -> None:
        logits = logits.float()
        nll = self.place.all_trails(self._losses(logits, targets))  # [T, N]
        assert len(nll) == self.num_trails, f"{len(nll)} trails in place of {self.num_trails}"
        (by_logit,) = self._losses(self.place.mean_of_trails(logits)[None], targets)
        answers = self.place.all_trails(self.place.most_likely(logits))  # [T, N]
        ensemble = torch.stack([-mean_of_probs(-nll), by_logit, disagreement(answers), torch.ones_like(weights)])
        self.sums += (torch.cat([nll, ensemble]).double() * weights).sum(1)

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Losses [T, N] of logits [T, N, V]."""
        return self.place.token_losses(logits[:, None], targets[None])[:, 0]

    def means(self) -> dict:
        """The figures of all samples added so far, for :meth:`nt_dist.config.family.Family.figures` to name.

        Returns:
            nll: mean negative log-likelihood in nats, {"trails": [T], "prob", "logit"}: of each trail, of the mean of
                their probabilities, of the softmax of the mean of their logits.
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
    """Share of the pairs of trails that answer differently: float64 [N] in 0 .. 1, 0 with one trail; answers [T, N]."""
    trails = len(answers)
    return (answers[:, None] != answers).sum((0, 1)).double() / max(1, trails * (trails - 1))
