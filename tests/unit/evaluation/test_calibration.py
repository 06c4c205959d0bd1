"""Calibration against torchmetrics and scikit-learn, and that chunks, padding and ranks do not change it."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from nt_dist.evaluation.calibration import BINS, FINE_BINS, CalibrationSums, equal_mass
from tests.unit.evaluation.prediction_case import TRAILS, chunks_of, expected_probs, mesh_beside, random_case


def _sums(case, monkeypatch, **kwargs):
    sums = CalibrationSums(len(case[0]) + 2)
    for chunk in chunks_of(case, monkeypatch, **kwargs):
        sums.add(chunk)
    return sums


def _adaptive_by_sorting(confidence, right):
    """Adaptive ECE of the tokens themselves, sorted and dealt out evenly, a token on a border in both bins in part."""
    order = np.argsort(confidence)
    gap = np.concatenate([[0], np.cumsum((right - confidence)[order])])
    borders = np.interp(np.linspace(0, len(order), BINS + 1), np.arange(len(order) + 1), gap)
    return np.abs(np.diff(borders)).sum() / len(order)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_every_score_is_that_of_another_implementation(monkeypatch, scale):
    case = random_case(batch=40, scale=scale)
    probs, targets = expected_probs(*case)
    sums = _sums(case, monkeypatch, tokens=50)
    result = sums.result()
    assert sums.tokens == len(targets) == case[2].sum()
    for number, each in enumerate(probs):
        confidence, right = each.max(-1), each.argmax(-1) == targets
        expected = {
            "nll": log_loss(targets, each, labels=range(each.shape[-1])),
            "accuracy": accuracy_score(targets, each.argmax(-1)),
            "brier": ((each - np.eye(each.shape[-1])[targets]) ** 2).sum(-1).mean(),
            "ece": multiclass_calibration_error(
                torch.from_numpy(each), torch.from_numpy(targets), num_classes=each.shape[-1], n_bins=BINS
            ).item(),
        }
        for name, value in expected.items():
            assert result[name][number] == pytest.approx(value, rel=1e-5), (name, number)
        # the fine bins' width bounds what is not known about a confidence
        assert result["adaptive_ece"][number] == pytest.approx(_adaptive_by_sorting(confidence, right), abs=1e-3)


def test_brier_of_two_classes_is_twice_scikit_learns(monkeypatch):
    from sklearn.metrics import brier_score_loss

    logits, targets, weights = random_case(batch=5)
    logits[..., 2:] = -math.inf  # all but two pieces are padding
    case = logits, targets % 2, weights
    probs, targets = expected_probs(*case)
    expected = [2 * brier_score_loss(targets, each[:, 1]) for each in probs]
    assert _sums(case, monkeypatch).result()["brier"] == pytest.approx(expected, rel=1e-5)


def test_the_diagram_is_scikit_learns(monkeypatch):
    case = random_case(batch=40)
    probs, targets = expected_probs(*case)
    for each, diagram in zip(probs, _sums(case, monkeypatch).reliability(), strict=True):
        right = each.argmax(-1) == targets
        accuracy, confidence = calibration_curve(right, each.max(-1), n_bins=BINS)
        full = [number for number, count in enumerate(diagram["count"]) if count]
        assert [diagram["accuracy"][number] for number in full] == pytest.approx(accuracy.tolist())
        assert [diagram["confidence"][number] for number in full] == pytest.approx(confidence.tolist(), rel=1e-5)
        assert sum(diagram["count"]) == len(targets)
        assert all(diagram["accuracy"][number] is None for number in range(BINS) if number not in full)


def test_chunks_padding_and_ranks_change_nothing(monkeypatch):
    logits, targets, weights = random_case(3)
    whole = _sums((logits, targets, weights), monkeypatch, tokens=1000)
    parts = []
    for rows in (slice(0, 1), slice(1, None)):  # uneven
        part, real = logits[:, rows].clone(), weights[rows] > 0
        part[:, ~real] = math.nan
        parts.append(_sums((part, torch.where(real, targets[rows], -100), weights[rows]), monkeypatch, tokens=2))
    summed = parts[0] + parts[1]
    parts[0].reduce(mesh_beside(parts[1].sums))
    for name, values in whole.result().items():
        assert summed.result()[name] == pytest.approx(values, rel=1e-6), name
        assert parts[0].result()[name] == pytest.approx(values, rel=1e-6), name


def test_a_certain_and_right_predictor_is_perfect(monkeypatch):
    logits, targets, weights = random_case(4)
    logits = 1e4 * torch.nn.functional.one_hot(targets, logits.shape[-1]).float().expand(TRAILS, -1, -1, -1)
    result = _sums((logits, targets, weights), monkeypatch).result()
    assert result["accuracy"] == [1.0] * (TRAILS + 2)
    for name in ("nll", "brier", "ece", "adaptive_ece"):
        assert result[name] == pytest.approx([0.0] * (TRAILS + 2), abs=1e-6), name


def test_equal_mass_bins_share_out_a_crowded_fine_bin():
    histogram = np.zeros((FINE_BINS, 3))
    histogram[-1] = [30, 30, 15]  # all tokens are certain, half of them right
    assert equal_mass(histogram).tolist() == pytest.approx(np.tile([2, 2, 1], (BINS, 1)))
