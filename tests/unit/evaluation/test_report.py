"""The table holds every figure, and says nothing of an ensemble where there is one trail."""

import math

import numpy as np

from nt_dist.evaluation.report import evaluation_table
from nt_dist.llama.family import Llama

ENSEMBLE = {
    "ppl_trails": [73.4, 74.1, 73.1],
    "ppl_ensemble_prob": 68.62,
    "ppl_ensemble_logit": 68.20,
    "disagreement": 0.345,
    "ensemble_gain": 0.0691,
    "tokens": 204800,
}


def test_every_figure_is_shown():
    text = evaluation_table(Llama(), ENSEMBLE, {"parameters": "4.42 M"})
    for figure in (
        "73.40",
        "74.10",
        "73.10",
        "73.53",
        "68.62",
        "68.20",
        "34.5%",
        f"{np.log([73.4, 74.1, 73.1]).mean() - math.log(68.62):.4f} nats a token",
        "204,800",
        "4.42 M",
    ):
        assert figure in text
    by_prob = next(line for line in text.splitlines() if "mean of probabilities" in line)
    assert by_prob.endswith("-6.7 %")
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_each_source_of_a_mixture_has_a_row():
    other = ENSEMBLE | {"ppl_trails": [5.0, 6.0, 7.0], "ppl_ensemble_prob": 4.5, "tokens": 1024}
    lines = evaluation_table(Llama(), ENSEMBLE | {"sources": {"code": other, "prose": ENSEMBLE}}).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("perplexity by source"))
    assert lines[place].split()[3:5] == ["trail", "1"]
    assert lines[place + 2].split() == ["code", "5.00", "6.00", "7.00", "68.20", "4.50", "1,024"]
    assert lines[place + 3].split() == ["prose", "73.40", "74.10", "73.10", "68.20", "68.62", "204,800"]


def test_one_trail_has_no_ensemble():
    text = evaluation_table(Llama(), ENSEMBLE | {"ppl_trails": [73.4]})
    assert "73.40" in text and "ensemble" not in text and "disagreement" not in text


def test_a_diverged_run_is_still_shown():
    bad = dict.fromkeys(("ppl_ensemble_prob", "ppl_ensemble_logit", "ensemble_gain"), math.inf)
    text = evaluation_table(Llama(), ENSEMBLE | bad | {"ppl_trails": [math.inf, math.nan]})
    assert "inf" in text and "nan" in text
    assert math.isnan(Llama().headline(ENSEMBLE | {"ppl_trails": [73.4, None]}).gain)  # as metrics.jsonl has it
