"""The ensemble's figures against numpy written another way, and that batching does not change them."""

import math

import numpy as np
import pytest
import torch

from nt_dist.evaluation import evaluate as module
from nt_dist.evaluation.evaluate import EnsembleSums, disagreement
from nt_dist.llama.family import Llama, perplexity
from tests.unit.evaluation.prediction_case import mesh_beside

TRAILS, BATCH, SEQUENCE, VOCABULARY = 3, 4, 7, 11


def _case(seed=0, trails=TRAILS):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(trails, BATCH, SEQUENCE, VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=generator)
    weights = (torch.rand(BATCH, SEQUENCE, generator=generator) < 0.7).float()
    return logits, targets, weights


def _figures(sums):
    return Llama().figures(sums.means())


def _by_hand(logits, targets, weights):
    """Token by token, in probabilities rather than logarithms."""
    logits, targets, weights = logits.double().numpy(), targets.numpy(), weights.numpy()
    nll_trails, nll_prob, nll_logit, differ, tokens = (
        np.zeros(len(logits)),
        0.0,
        0.0,
        [],
        0,
    )
    for b, s in zip(*np.nonzero(weights), strict=True):
        odds = np.exp(logits[:, b, s])
        probs = odds / odds.sum(-1, keepdims=True)
        nll_trails -= np.log(probs[:, targets[b, s]])
        nll_prob -= np.log(probs.mean(0)[targets[b, s]])
        mean_odds = np.exp(logits[:, b, s].mean(0))
        nll_logit -= np.log(mean_odds[targets[b, s]] / mean_odds.sum())
        best = probs.argmax(-1)
        differ.append(np.mean([best[i] != best[j] for i in range(len(best)) for j in range(i)]))
        tokens += 1
    return {
        "ppl_trails": np.exp(nll_trails / tokens).tolist(),
        "ppl_ensemble_prob": math.exp(nll_prob / tokens),
        "ppl_ensemble_logit": math.exp(nll_logit / tokens),
        "disagreement": float(np.mean(differ)),
        "ensemble_gain": float((nll_trails.mean() - nll_prob) / tokens),
        "tokens": tokens,
    }


def test_the_figures_are_those_computed_by_hand(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 5)  # 28 tokens: several chunks and a ragged last one
    case = _case()
    sums = EnsembleSums(TRAILS)
    sums.add(*case)
    result, expected = _figures(sums), _by_hand(*case)
    assert list(result) == list(expected)
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, rel=1e-5), key
    assert isinstance(result["tokens"], int)
    assert result["ensemble_gain"] > 0 and 0 < result["disagreement"] < 1


def test_batches_and_ranks_do_not_change_the_figures():
    logits, targets, weights = _case(1)
    whole = EnsembleSums(TRAILS)
    whole.add(logits, targets, weights)
    parts = [EnsembleSums(TRAILS), EnsembleSums(TRAILS)]
    parts[0].add(logits[:, :1], targets[:1], weights[:1])  # uneven: a mean of means would differ
    parts[1].add(logits[:, 1:], targets[1:], weights[1:])
    parts[0].reduce(mesh_beside(parts[1].sums))
    result = _figures(parts[0])
    for key, value in _figures(whole).items():
        assert result[key] == pytest.approx(value, rel=1e-9), key


def test_padding_counts_for_nothing_whatever_it_holds():
    logits, targets, weights = _case(2)
    clean, dirty = EnsembleSums(TRAILS), EnsembleSums(TRAILS)
    clean.add(logits, targets, weights)
    padding = weights == 0
    logits[:, padding] = math.nan
    dirty.add(logits, torch.where(padding, -100, targets), weights)
    assert _figures(dirty) == _figures(clean)


def test_padded_vocabulary_changes_nothing():
    logits, targets, weights = _case(3)
    plain, padded = EnsembleSums(TRAILS), EnsembleSums(TRAILS)
    plain.add(logits, targets, weights)
    padded.add(torch.nn.functional.pad(logits, (0, 5), value=-math.inf), targets, weights)
    for key, value in _figures(plain).items():
        assert _figures(padded)[key] == pytest.approx(value, rel=1e-6), key


def test_one_trail_is_its_own_ensemble():
    sums = EnsembleSums(1)
    sums.add(*_case(4, trails=1))
    result = _figures(sums)
    assert result["ppl_ensemble_prob"] == pytest.approx(result["ppl_trails"][0], rel=1e-6)
    assert result["ppl_ensemble_logit"] == pytest.approx(result["ppl_trails"][0], rel=1e-6)
    assert result["disagreement"] == 0
    assert result["ensemble_gain"] == pytest.approx(0, abs=1e-4)


def test_bf16_logits_are_summed_in_fp32():
    logits, targets, weights = _case(5)
    low, high = EnsembleSums(TRAILS), EnsembleSums(TRAILS)
    low.add(logits.bfloat16(), targets, weights)
    high.add(logits.bfloat16().float(), targets, weights)
    assert _figures(low) == _figures(high)


def test_disagreement_is_the_share_of_pairs():
    answers = torch.tensor([[1, 1, 1], [1, 2, 1], [1, 3, 2]])
    assert disagreement(answers).tolist() == pytest.approx([0, 1, 2 / 3])


def test_no_tokens_is_an_error_and_a_huge_loss_is_not():
    with pytest.raises(ValueError, match="at least one real token"):
        _figures(EnsembleSums(2))
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))
