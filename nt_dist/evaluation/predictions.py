"""What the trails and their ensembles predict for a chunk of real tokens: the common ground of all figures.

Shapes: T trails, N tokens (one a sample where a sample has one answer), V classes (those held here, where they are cut
over ranks), P = T + 2 predictors: the trails, then the mean of their probabilities (Lakshminarayanan et al., arXiv
1612.01474, §2.4), then the softmax of the mean of their logits (what the NeuroTrails paper, arXiv 2505.17909, reports).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from nt_dist.model.place import Place

Device = torch.device | str
# Entries of [P, N, V] at once: bounds the working memory, a few such tensors in fp32, whatever batch and vocabulary.
CHUNK_ENTRIES = 1 << 22
# In place of -inf (padded classes): p · log p is then 0 and not nan, and no figure sees it.
_LOG_ZERO = -1e30


class Sums:
    """Sums over tokens in float64, from which figures are made at the end; ``shape`` is theirs.

    Averages are never averaged, so batch size, ragged last batches and the number of ranks do not change a figure.
    """

    def __init__(self, *shape: int, device: Device):
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)

    def reduce(self, mesh) -> None:
        """Adds up the sums of all ranks that saw other tokens; those of a pipeline's earlier stages saw none."""
        mesh.all_reduce(self.sums, ("pipe", "data"))


@dataclass(frozen=True, eq=False)
class Predictions:
    """Distributions over the classes, one a predictor and token."""

    log_probs: torch.Tensor  # normalised, fp32 [P, N, V], all finite
    targets: torch.Tensor  # the right classes [N]
    weights: torch.Tensor  # of the tokens, float64 [N], all above 0
    rows: torch.Tensor  # the row of the batch in which each token stands [N]
    place: Place  # which classes are held here

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
        """Mutual information of the right class and the choice of the trail, in nats [N].

        The epistemic part of the uncertainty: entropy of the mean minus mean of the entropies (Depeweg et al., arXiv
        1710.07283, section 3; Houlsby et al., arXiv 1112.5745), computed as the equal mean KL divergence of the trails
        from their mean, which does not lose its digits when it is small.
        """
        *trails, mean = self.log_probs[:-1]
        each = [self.over_classes(p, log_p - mean) for p, log_p in zip(self.probs, trails, strict=False)]
        return torch.stack(each).mean(0)

    def over_classes(self, probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Expectations [...] of ``values`` [..., V] under ``probs`` [..., V], over all classes."""
        return self.place.sum_over_classes((probs * values).sum(-1))

    def total(self, *figures: torch.Tensor) -> torch.Tensor:
        """Weighted sums over the tokens, float64 [number of figures, ...], of figures [..., N]."""
        return (torch.stack([each.double() for each in figures]) * self.weights).sum(-1)

    def tempered(self, temperatures: list[float]) -> "Predictions":
        """The same with each predictor's log-probabilities divided by its temperature [P] and normalised again."""
        divisors = self.log_probs.new_tensor(temperatures)[:, None, None]
        return replace(self, log_probs=_normalised(self.log_probs / divisors, self.place))


def real_tokens(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, at_once: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Cut a batch into chunks of ``at_once`` real tokens.

    Args:
        logits: [T, B, S, V], any floating type: the trails and classes held here; S positions of a sample.
        targets: [B, S], the class each position has to predict.
        weights: [B, S], 1 for a real token, 0 for padding (whose logits and targets are not looked at).

    Yields logits [T, N, V], targets [N], weights in float64 [N] and rows of the batch [N].
    """
    assert logits.shape[1:3] == targets.shape == weights.shape
    positions = targets.shape[1]
    logits, targets, weights = logits.flatten(1, 2), targets.flatten(), weights.flatten()
    for tokens in weights.nonzero()[:, 0].split(at_once):
        if len(tokens):  # splitting nothing gives one part
            yield logits.index_select(1, tokens), targets[tokens], weights[tokens].double(), tokens // positions


def predictions(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, num_trails: int, place: Place
) -> Iterator[Predictions]:
    """Cut a batch, as :func:`real_tokens` takes it; a collective of the ranks that hold parts of the T trails."""
    at_once = max(1, CHUNK_ENTRIES // ((num_trails + 2) * logits.shape[-1]))
    for some, *tokens in real_tokens(logits, targets, weights, at_once):
        trails = place.all_trails(some).float()
        by_trail, by_logit = _normalised(trails, place), _normalised(trails.mean(0, keepdim=True), place)
        yield Predictions(torch.cat([by_trail, mean_of_probs(by_trail)[None], by_logit]), *tokens, place)


def by_predictor(figures: dict | list) -> dict:
    """Names the figures [P] of the trails and of both means, or those of each entry of a dictionary."""
    if isinstance(figures, dict):
        return {name: by_predictor(each) for name, each in figures.items()}
    *trails, prob, logit = figures
    return {"trails": trails, "prob": prob, "logit": logit}


def mean_of_probs(log_probs: torch.Tensor) -> torch.Tensor:
    """Logarithms [...] of the mean over the trails of probabilities whose logarithms are [T, ...]."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def _normalised(logits: torch.Tensor, place: Place) -> torch.Tensor:
    return (logits - place.log_sum_exp(logits)[..., None]).clamp_min_(_LOG_ZERO)
