"""The temperature found in one pass is the one that scipy's minimiser finds by many."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from nt_dist.evaluation.calibration import CalibrationSums, TemperatureFit
from tests.unit.evaluation.prediction_case import chunks_of, expected_probs, mesh_beside, random_case


def _fitted(case, monkeypatch, tokens=7):
    fit = TemperatureFit(len(case[0]) + 2)
    for chunk in chunks_of(case, monkeypatch, tokens):
        fit.add(chunk)
    return fit


def _nll(log_probs, targets, temperature):
    return -log_softmax(log_probs / temperature, -1)[np.arange(len(targets)), targets].mean()


@pytest.mark.parametrize("scale", [0.9, 1.5, 2.0, 3.0])
def test_it_is_where_the_likelihood_is_highest(monkeypatch, scale):
    case = random_case(batch=30, scale=scale)
    probs, targets = expected_probs(*case)
    found = _fitted(case, monkeypatch).temperatures()
    best = [
        minimize_scalar(lambda t, each=each: _nll(np.log(each), targets, t), bounds=(0.1, 9), method="bounded").x
        for each in probs
    ]
    inside = [0.25 < each < 4 for each in best]
    assert sum(inside) >= 3
    assert [t for t, use in zip(found, inside, strict=True) if use] == pytest.approx(
        [t for t, use in zip(best, inside, strict=True) if use], rel=2e-3
    )


def test_a_temperature_beyond_the_grid_is_its_end(monkeypatch):
    logits, targets, weights = random_case(1)
    wrong = -torch.nn.functional.one_hot(targets, logits.shape[-1]).float().expand_as(logits)
    assert _fitted((wrong, targets, weights), monkeypatch).temperatures() == pytest.approx([4.0] * 5)
    assert _fitted((-wrong, targets, weights), monkeypatch).temperatures() == pytest.approx([0.25] * 5)


def test_ranks_and_padding_change_nothing(monkeypatch):
    logits, targets, weights = random_case(2, batch=12)
    whole = _fitted((logits, targets, weights), monkeypatch, tokens=100)
    one, other = (
        _fitted((logits[:, rows], targets[rows], weights[rows]), monkeypatch) for rows in (slice(5), slice(5, None))
    )
    one.reduce(mesh_beside(other.sums))
    assert one.temperatures() == pytest.approx(whole.temperatures(), rel=1e-6)


def test_tempered_predictions_are_scaled_and_normalised(monkeypatch):
    case = random_case(3)
    probs, targets = expected_probs(*case)
    temperatures = [0.5, 1.0, 2.0, 3.0, 0.7]
    sums = CalibrationSums(5)
    for chunk in chunks_of(case, monkeypatch):
        sums.add(chunk.tempered(temperatures))
    expected = [_nll(np.log(each), targets, t) for each, t in zip(probs, temperatures, strict=True)]
    assert sums.result()["nll"] == pytest.approx(expected, rel=1e-5)


def test_no_tokens_is_an_error():
    with pytest.raises(ValueError, match="at least one real token"):
        TemperatureFit(3).temperatures()


def test_a_model_that_has_diverged_has_some_temperature(monkeypatch):
    logits, targets, weights = random_case(4)
    found = _fitted((torch.full_like(logits, torch.nan), targets, weights), monkeypatch).temperatures()
    assert all(0.25 <= each <= 4 for each in found)
