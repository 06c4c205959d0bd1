"""Detection of shifted sequences against its definitions, ties included, and the scores it goes by."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, mannwhitneyu

from nt_dist.evaluation.uncertainty import SCORES, SequenceScores, detection
from tests.unit.evaluation.prediction_case import ALONE, TRAILS, chunks_of, expected_probs, random_case


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(40, 25), (3, 50), (1, 1)])
def test_the_measures_are_those_of_all_thresholds(ties, sizes):
    draw = np.random.default_rng(sizes[0])
    negative, positive = draw.normal(0, 1, sizes[0]), draw.normal(0.7, 1, sizes[1])
    if ties:
        negative, positive = negative.round(), positive.round()
    thresholds = np.unique([*negative, *positive])[::-1]
    false, true = ((each >= thresholds[:, None]).sum(1) for each in (negative, positive))
    precision, gained = true / (true + false), np.diff(true, prepend=0) / sizes[1]
    found = detection(*(np.repeat(each[:, None], 3, 1) for each in (negative, positive)))
    for score in SCORES:
        assert found["auroc"][score] == pytest.approx(mannwhitneyu(positive, negative).statistic / math.prod(sizes))
        assert found["aupr"][score] == pytest.approx((gained * precision).sum())
        assert found["fpr95"][score] == pytest.approx(false[true >= 0.95 * sizes[1]].min() / sizes[0])


def test_which_side_is_which():
    low, high = np.zeros((5, 3)), np.ones((4, 3))
    good, bad = detection(low, high), detection(high, low)
    for score in SCORES:
        assert (good["auroc"][score], good["aupr"][score], good["fpr95"][score]) == (1, 1, 0)
        assert (bad["auroc"][score], bad["fpr95"][score]) == (0, 1)


def test_scores_of_a_model_that_has_diverged_tell_nothing():
    scores = np.ones((4, 3))
    scores[0, 0] = np.nan
    found = detection(scores, np.zeros((5, 3)))
    assert np.isnan(found["auroc"]["entropy"]) and np.isnan(found["fpr95"]["entropy"])
    assert found["auroc"]["max_probability"] == 0


def test_scores_are_means_over_a_sequences_real_tokens(monkeypatch):
    case = random_case()
    probs, _ = expected_probs(*case)
    scores = SequenceScores()
    scores.begin(len(case[1]))
    for chunk in chunks_of(case, monkeypatch, tokens=4):  # chunks end in the middle of sequences
        scores.add(chunk)
    found = scores.gather(ALONE)
    lengths = case[2].sum(1).long().tolist()
    assert lengths[-1] == 0 and len(found) == len(lengths) - 1  # a row of padding is no sequence
    mean, trails = probs[TRAILS], probs[:TRAILS]
    tokens = [entropy(mean, axis=-1), entropy(mean, axis=-1) - entropy(trails, axis=-1).mean(0), -mean.max(-1)]
    ends = np.cumsum(lengths[:-1])
    for row, (start, stop) in enumerate(zip(ends - lengths[:-1], ends, strict=True)):
        assert found[row] == pytest.approx([each[start:stop].mean() for each in tokens], rel=1e-4)


def test_scores_of_all_ranks_are_gathered():
    scores = SequenceScores()
    scores._batches = [torch.tensor([[2.0, 4.0, -1.0, 2.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)]

    def all_reduce(tensor, axis_names, op="sum"):
        assert axis_names == ("pipe", "data")
        if op == "max":
            return tensor.fill_(3)  # the other rank has one sequence more
        tensor[0, 2] = torch.tensor([9.0, 6.0, -3.0, 3.0])
        return tensor

    mesh = SimpleNamespace(data=SimpleNamespace(rank=1, degree=2), all_reduce=all_reduce)
    assert scores.gather(mesh).tolist() == [[3.0, 2.0, -1.0], [1.0, 2.0, -0.5]]
