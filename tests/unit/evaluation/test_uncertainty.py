"""Divergences and entropies against scipy and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torchmetrics.functional.regression import kl_divergence

from nt_dist.evaluation.uncertainty import DiversitySums
from tests.unit.evaluation.prediction_case import TRAILS, chunks_of, expected_probs, random_case


def _result(case, monkeypatch, **kwargs):
    sums = DiversitySums(len(case[0]))
    for chunk in chunks_of(case, monkeypatch, **kwargs):
        sums.add(chunk)
    return sums.result()


def test_every_figure_is_that_of_another_implementation(monkeypatch):
    case = random_case()
    probs, _ = expected_probs(*case)
    trails, mean = probs[:TRAILS], probs[TRAILS]
    result = _result(case, monkeypatch)
    for i, p in enumerate(trails):
        for j, q in enumerate(trails):
            kl = kl_divergence(torch.from_numpy(p), torch.from_numpy(q)).item()
            assert result["kl"][i][j] == pytest.approx(kl, rel=1e-5, abs=1e-9)
            assert result["js"][i][j] == pytest.approx(np.mean(jensenshannon(p, q, axis=-1) ** 2), rel=1e-5, abs=1e-9)
            differ = np.mean(p.argmax(-1) != q.argmax(-1))
            assert result["disagreement_matrix"][i][j] == pytest.approx(differ)
    pairs = [(i, j) for i in range(TRAILS) for j in range(TRAILS) if i != j]
    for name in ("kl", "js"):
        assert result[f"{name}_mean"] == pytest.approx(np.mean([result[name][i][j] for i, j in pairs]))
    total, members = entropy(mean, axis=-1).mean(), entropy(trails, axis=-1).mean()
    assert result["entropy_mean"] == pytest.approx(total, rel=1e-5)
    assert result["entropy_members"] == pytest.approx(members, rel=1e-5)
    assert result["mutual_information"] == pytest.approx(total - members, rel=1e-5)
    assert result["kl"][0][1] != pytest.approx(result["kl"][1][0], rel=1e-3)  # rows and columns are not mixed up


def test_chunks_and_padding_change_nothing(monkeypatch):
    logits, targets, weights = random_case(1)
    whole = _result((logits, targets, weights), monkeypatch, tokens=1000)
    logits[:, weights == 0] = math.nan
    logits = torch.nn.functional.pad(logits, (0, 5), value=-math.inf)  # a padded vocabulary
    parts = _result((logits, targets, weights), monkeypatch, tokens=4)
    assert list(parts) == list(whole)
    for name, value in whole.items():
        assert np.array(parts[name]) == pytest.approx(np.array(value), rel=1e-5, abs=1e-9), name


def test_equal_trails_and_a_single_one_have_no_diversity(monkeypatch):
    logits, targets, weights = random_case(2)
    alike = _result((logits[:1].expand(TRAILS, -1, -1, -1), targets, weights), monkeypatch)
    single = _result((logits[:1], targets, weights), monkeypatch)
    for result in (alike, single):
        for name in ("kl_mean", "js_mean", "mutual_information"):
            assert result[name] == pytest.approx(0, abs=1e-7), name
        assert result["entropy_mean"] == pytest.approx(result["entropy_members"], rel=1e-6)
    assert single["kl"] == [[0.0]]


def test_trails_that_share_nothing_are_as_far_apart_as_can_be(monkeypatch):
    logits, targets, weights = random_case(3)
    logits[0, ..., :5], logits[1, ..., 5:] = 60.0, 60.0
    logits[0, ..., 5:], logits[1, ..., :5] = -60.0, -60.0
    result = _result((logits[:2], targets, weights), monkeypatch)
    assert result["js"][0][1] == pytest.approx(math.log(2), rel=1e-5)
    assert result["mutual_information"] == pytest.approx(math.log(2), rel=1e-5)
