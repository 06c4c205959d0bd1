"""The full figures hang together: the plain ones among them, two parts that add up, and errors on none."""

import numpy as np
import pytest
import torch

from nt_dist.evaluation.evaluate import EnsembleSums
from nt_dist.evaluation.full import FullSums
from nt_dist.evaluation.report import full_tables
from nt_dist.llama.family import Llama
from nt_dist.resnet.family import ResNet
from tests.unit.evaluation.prediction_case import ALONE, TRAILS, expected_probs, random_case


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


def test_top_5_is_the_share_of_targets_with_less_than_five_likelier_classes():
    one, other = random_case(0, batch=8), random_case(1, batch=5)
    sums, beside = FullSums(TRAILS, num_classes=12), FullSums(TRAILS, num_classes=12)
    sums.add(*one)
    beside.add(*other)
    parts = [expected_probs(*case) for case in (one, other)]
    probs, targets = (np.concatenate([part[number] for part in parts], 1 - number) for number in (0, 1))
    likeliest = np.argsort(-probs, -1)[..., :5]
    expected = (likeliest == targets[:, None]).any(-1).mean(-1)
    assert (sums.calibration + beside.calibration).result()["top5"] == pytest.approx(expected.tolist())
    assert 0.3 < expected.min() < expected.max() < 1


def test_five_classes_have_no_top_5_and_a_table_shows_it_where_it_is():
    logits, targets, weights = random_case()
    few, many = FullSums(TRAILS, num_classes=5), FullSums(TRAILS, num_classes=12)
    few.add(logits[..., :5], targets % 5, weights)
    many.add(logits, targets, weights)
    assert "top5" not in few.result(ResNet()) and "top-5" not in full_tables(ResNet(), few.result(ResNet()))
    found = many.result(ResNet())
    assert f"{found['top5']['logit']:.4f}" in full_tables(ResNet(), found) and found["top5"]["prob"] > 0.3
