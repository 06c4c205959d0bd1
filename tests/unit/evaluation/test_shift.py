"""Detection of shifted sequences against scikit-learn, ties included, and the scores it goes by."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from nt_dist.evaluation.shift import SCORES, SequenceScores, aupr, auroc, detection, fpr95, threshold_curve
from tests.unit.evaluation.prediction_case import ALONE, TRAILS, chunks_of, expected_probs, random_case


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(40, 25), (3, 50), (1, 1)])
def test_the_areas_are_scikit_learns(ties, sizes):
    draw = np.random.default_rng(sizes[0])
    negative, positive = draw.normal(0, 1, sizes[0]), draw.normal(0.7, 1, sizes[1])
    if ties:
        negative, positive = negative.round(), positive.round()
    curve = threshold_curve(negative, positive)
    labels, scores = np.repeat([0, 1], sizes), np.concatenate([negative, positive])
    assert auroc(*curve) == pytest.approx(roc_auc_score(labels, scores))
    assert auroc(*curve) == pytest.approx(mannwhitneyu(positive, negative).statistic / (sizes[0] * sizes[1]))
    assert aupr(*curve) == pytest.approx(average_precision_score(labels, scores))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert fpr95(*curve) == pytest.approx(false[true >= 0.95].min())


def test_which_side_is_which():
    low, high = np.zeros((5, 3)), np.ones((4, 3))
    good, bad = detection(low, high), detection(high, low)
    for score in SCORES:
        assert (good["auroc"][score], good["aupr"][score], good["fpr95"][score]) == (1, 1, 0)
        assert (bad["auroc"][score], bad["fpr95"][score]) == (0, 1)


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
