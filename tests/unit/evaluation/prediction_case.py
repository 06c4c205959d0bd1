"""Random trails, and what another way of computing makes of them, for the tests of the full figures."""

from types import SimpleNamespace

import numpy as np
import torch

from nt_dist.evaluation import predictions as module
from nt_dist.model.place import Place


def mesh_beside(*other):
    """A mesh whose other rank has these sums; none for a mesh of one rank."""

    def all_reduce(tensor, axis_names, op="sum"):
        for sums in other:
            tensor += sums
        return tensor

    return SimpleNamespace(device="cpu", data=SimpleNamespace(rank=0, degree=1), all_reduce=all_reduce)


ALONE = mesh_beside()
TRAILS, BATCH, SEQUENCE, VOCABULARY = 3, 6, 9, 11


def random_case(seed=0, trails=TRAILS, batch=BATCH, scale=2.0):
    """Logits that know something of the targets, and weights with a ragged end in every row and one row of padding."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(trails, batch, SEQUENCE, VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (batch, SEQUENCE), generator=generator)
    logits += 2 * torch.nn.functional.one_hot(targets, VOCABULARY)
    lengths = torch.randint(1, SEQUENCE + 1, (batch,), generator=generator)
    lengths[-1] = 0
    return logits, targets, (torch.arange(SEQUENCE) < lengths[:, None]).float()


def expected_probs(logits, targets, weights):
    """Probabilities [P, N, V] of all predictors in float64, and the targets [N], of the real tokens, by numpy."""
    real = weights.numpy() > 0
    odds = np.exp(logits.double().numpy())[:, real]
    trails = odds / odds.sum(-1, keepdims=True)
    of_mean_logit = np.exp(logits.double().numpy().mean(0))[real]
    of_mean_logit /= of_mean_logit.sum(-1, keepdims=True)
    return np.concatenate([trails, trails.mean(0)[None], of_mean_logit[None]]), targets.numpy()[real]


def chunks_of(case, monkeypatch, tokens=7):
    """The case's predictions in chunks of so many tokens."""
    logits, targets, weights = case
    monkeypatch.setattr(module, "CHUNK_ENTRIES", tokens * (len(logits) + 2) * logits.shape[-1])
    return list(module.predictions(logits, targets, weights, len(logits), Place()))
