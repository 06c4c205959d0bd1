"""What the trails and their ensembles predict for a chunk of real tokens: the common ground of all full figures.

Shapes: T trails, N tokens, V classes (those held here, where they are cut over ranks), P = T + 2 predictors: the
trails, then the mean of their probabilities (Lakshminarayanan et al., arXiv 1612.01474, §2.4), then the softmax of the
mean of their logits (what the NeuroTrails paper, arXiv 2505.17909, reports).
"""

import math
from collections.abc import Iterator
from functools import cached_property

import torch

from nt_dist.model.place import Place

# Entries of [P, N, V] at once: bounds the working memory, a few such tensors in fp32, whatever batch and vocabulary.
CHUNK_ENTRIES = 1 << 22
# In place of -inf (padded classes): p · log p is then 0 and not nan, and no figure sees it.
_LOG_ZERO = -1e30


class Predictions:
    """Distributions over the classes, one a predictor and token.

    Args:
        log_probs: Normalised log-probabilities, fp32 [P, N, V], all finite.
        targets: The right classes, [N].
        rows: The row of the batch in which each token stands, [N].
        weights: Of the tokens, float64 [N], all above 0.
        place: Which classes are held here.
    """

    def __init__(
        self, log_probs: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor, place: Place
    ):
        self.log_probs, self.targets, self.rows, self.weights, self.place = log_probs, targets, rows, weights, place

    @property
    def trails(self) -> torch.Tensor:
        """Log-probabilities of the trails [T, N, V]."""
        return self.log_probs[:-2]

    @cached_property
    def probs(self) -> torch.Tensor:
        """Probabilities [P, N, V]."""
        return self.log_probs.exp()

    @cached_property
    def nll(self) -> torch.Tensor:
        """Negative log-likelihoods of the targets in nats [P, N]."""
        return -self.place.at(self.log_probs, self.targets)

    @cached_property
    def highest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The confidence (the highest probability) and the answer (its class), both [P, N]."""
        log_confidence, answer = self.place.highest(self.log_probs)
        return log_confidence.exp(), answer

    @cached_property
    def entropy(self) -> torch.Tensor:
        """Entropies of the trails and of the mean of their probabilities, in nats [T + 1, N]."""
        return -self.over_classes(self.probs[:-1], self.log_probs[:-1])

    @cached_property
    def mutual_information(self) -> torch.Tensor:
        """Mutual information of the next token and the choice of the trail, in nats [N].

        The epistemic part of the uncertainty: entropy of the mean minus mean of the entropies (Depeweg et al., arXiv
        1710.07283, section 3; Houlsby et al., arXiv 1112.5745), computed as the equal mean KL divergence of the trails
        from their mean, which does not lose its digits when it is small.
        """
        mean = self.log_probs[-2]
        each = [self.over_classes(p, log_p - mean) for p, log_p in zip(self.probs[:-2], self.trails, strict=True)]
        return torch.stack(each).mean(0)

    def over_classes(self, probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Expectations [...] of ``values`` [..., V] under ``probs`` [..., V], over all classes."""
        return self.place.sum_over_classes((probs * values).sum(-1))

    def tempered(self, temperatures: torch.Tensor) -> "Predictions":
        """The same with each predictor's log-probabilities divided by its temperature [P] and normalised again."""
        scaled = self.log_probs / temperatures[:, None, None]
        return Predictions(_normalised(scaled, self.place), self.targets, self.rows, self.weights, self.place)


def predictions(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, num_trails: int, place: Place
) -> Iterator[Predictions]:
    """Cut a batch into chunks of real tokens; a collective of the ranks that hold parts of the model.

    Args:
        logits: [T, B, S, V], any floating type: the trails and classes held here.
        targets: [B, S].
        weights: [B, S], 0 for padding, which appears in no chunk.
        num_trails: T, of the whole model.
        place: Which trails and classes are held here.
    """
    assert logits.shape[1:3] == targets.shape == weights.shape
    real = weights.flatten().nonzero()[:, 0]
    every = logits.flatten(1, 2)  # [T held here, B · S, V]
    for tokens in real.split(max(1, CHUNK_ENTRIES // ((num_trails + 2) * logits.shape[-1]))):
        if not len(tokens):  # what splitting nothing gives
            return
        log_probs = _log_probs(place.all_trails(every[:, tokens]).float(), place)
        rows = tokens // targets.shape[1]
        yield Predictions(log_probs, targets.flatten()[tokens], rows, weights.flatten()[tokens].double(), place)


def mean_of_probs(log_probs: torch.Tensor) -> torch.Tensor:
    """Logarithms [...] of the mean over the trails of probabilities whose logarithms are [T, ...]."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def _log_probs(logits: torch.Tensor, place: Place) -> torch.Tensor:
    """Log-probabilities [T + 2, N, V] of all predictors, for the logits [T, N, V] of all trails."""
    by_trail = _normalised(logits, place)
    by_logit = _normalised(logits.mean(0, keepdim=True), place)
    return torch.cat([by_trail, mean_of_probs(by_trail)[None], by_logit])


def _normalised(logits: torch.Tensor, place: Place) -> torch.Tensor:
    return (logits - place.log_sum_exp(logits)[..., None]).clamp_min_(_LOG_ZERO)
