"""The tables hold every kind of figure, and nothing of an ensemble where there is one trail."""

from nt_dist.evaluation.full import FullSums
from nt_dist.evaluation.report import full_tables
from nt_dist.llama.family import Llama
from tests.unit.evaluation.prediction_case import ALONE, TRAILS, random_case

TOPOLOGY = {
    "checkpoints": [100, 200],
    "overlap": 0.612,
    "overlap_chance": 0.333,
    "density": 0.5,
    "ever_active": 0.734,
    "churn": [{"from": 100, "to": 200, "share": 0.091}],
}


def _figures(trails):
    sums = FullSums(trails, with_temperatures=True)
    for seed in (0, 1):
        sums.add(*random_case(seed, trails=trails))
        if not seed:
            sums.fit_temperatures(ALONE)
    return sums.result(Llama())


def _shift(figures):
    measures = {
        name: {"entropy": value, "mutual_information": 0.8, "max_probability": 0.7}
        for name, value in (("auroc", 0.9123), ("aupr", 0.8765), ("fpr95", 0.1234))
    }
    return {"against": "other.txt", "samples": {"unshifted": 1234, "shifted": 99}, "eval": figures, **measures}


def test_every_kind_of_figure_is_shown():
    figures = _figures(TRAILS)
    text = full_tables(Llama(), {**figures, "topology": TOPOLOGY, "shift": _shift(figures)})
    calibration, diversity = figures["calibration"], figures["diversity"]
    scaling = calibration["temperature"]
    for figure in (
        *figures["nll"]["trails"],
        *(figures["accuracy"]["prob"], calibration["ece"]["logit"], calibration["adaptive_ece"]["prob"]),
        *(calibration["brier"]["trails"][2], scaling["value"]["prob"], scaling["after"]["ece"]["prob"]),
        *(diversity["kl_mean"], diversity["js_mean"], diversity["entropy_mean"], diversity["entropy_members"]),
        diversity["mutual_information"],
    ):
        assert f"{figure:.4f}" in text
    for part in ("steps 100, 200", "73.4%", "0.612", "0.333", "churn 100 to 200", "9.1%"):
        assert part in text
    for part in ("other.txt", "1,234", "99 shifted", "0.9123", "0.8765", "0.1234", "mutual information"):
        assert part in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_one_trail_has_no_ensemble_and_a_dense_model_no_topology():
    text = full_tables(Llama(), {**_figures(1), "topology": None})
    assert "trail 1" in text and "temperature" in text
    assert "mean of" not in text and "diversity" not in text and "topology" not in text and "shift" not in text
