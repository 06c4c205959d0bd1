"""The full figures hang together: the plain ones among them, two parts that add up, and errors on none."""

import pytest
import torch

from nt_dist.evaluation.evaluate import EnsembleSums
from nt_dist.evaluation.full import FullSums
from nt_dist.llama.family import Llama
from tests.unit.evaluation.prediction_case import ALONE, TRAILS, random_case


def test_two_parts_are_one_text_and_temperatures_are_measured_on_the_second():
    one, other = random_case(0, batch=8), random_case(1, batch=5)
    both = FullSums(TRAILS, with_temperatures=True)
    both.add(*one)
    both.fit_temperatures(ALONE)
    both.add(*other)
    both.reduce(ALONE)
    plain, second, first = EnsembleSums(TRAILS), FullSums(TRAILS), FullSums(TRAILS)
    for case in (one, other):
        plain.add(*case)
    first.add(*one)
    second.add(*other)
    found, first, second = (sums.result(Llama()) for sums in (both, first, second))
    plain = Llama().figures(plain.means())
    assert {key: found[key] for key in plain} == plain

    scaling = found["calibration"].pop("temperature")
    assert (scaling["fit_tokens"], scaling["tokens"]) == (first["tokens"], second["tokens"])
    assert scaling["before"]["nll"] == second["nll"] and scaling["before"]["accuracy"] == second["accuracy"]
    assert {key: scaling["before"][key] for key in ("ece", "adaptive_ece", "brier")} == second["calibration"]
    assert scaling["after"]["accuracy"] == second["accuracy"]  # a temperature changes no answer
    assert scaling["after"]["nll"]["prob"] < second["nll"]["prob"]

    share = first["tokens"] / found["tokens"]
    for figure in ("nll", "accuracy"):
        mean = share * first[figure]["prob"] + (1 - share) * second[figure]["prob"]
        assert found[figure]["prob"] == pytest.approx(mean)
    assert sum(found["reliability"]["prob"]["count"]) == found["tokens"]
    assert list(second["calibration"]) == list(found["calibration"])


def test_a_part_without_a_token_is_an_error():
    case = random_case(0)
    padding = (*case[:2], torch.zeros_like(case[2]))
    nothing = FullSums(TRAILS, with_temperatures=True)
    nothing.add(*padding)
    with pytest.raises(ValueError, match="to be fitted on"):
        nothing.fit_temperatures(ALONE)
    half = FullSums(TRAILS, with_temperatures=True)
    half.add(*case)
    half.fit_temperatures(ALONE)
    half.add(*padding)
    with pytest.raises(ValueError, match="to be measured on"):
        half.result(Llama())
    with pytest.raises(ValueError, match="at least one real token"):
        FullSums(TRAILS).result(Llama())


def test_one_trail_is_its_own_ensemble():
    sums = FullSums(1)
    sums.add(*random_case(2, trails=1))
    result = sums.result(Llama())
    for figures in (result["nll"], *result["calibration"].values()):
        assert figures["prob"] == pytest.approx(figures["trails"][0]) == pytest.approx(figures["logit"])


def test_a_classifier_has_one_position_and_the_same_figures():
    logits, targets, weights = random_case(3, batch=8)
    as_positions, as_samples = FullSums(TRAILS, with_temperatures=True), FullSums(TRAILS, with_temperatures=True)
    for _ in range(2):
        as_positions.add(logits, targets, weights)
        as_samples.add(logits.flatten(1, 2)[:, :, None], targets.flatten()[:, None], weights.flatten()[:, None])
        if not as_samples.temperatures:
            as_positions.fit_temperatures(ALONE)
            as_samples.fit_temperatures(ALONE)
    assert as_samples.result(Llama()) == as_positions.result(Llama())
    by_sequence, by_sample = (torch.cat(sums.scores._batches) for sums in (as_positions, as_samples))
    assert (by_sample[:, -1] > 0).tolist() == (weights.flatten() > 0).tolist() * 2
    torch.testing.assert_close(by_sample.unflatten(0, (len(by_sequence), -1)).sum(1), by_sequence)
