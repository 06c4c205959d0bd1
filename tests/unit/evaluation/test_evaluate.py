"""The evaluation loop: sums over data ranks, leaves the model as it was, and refuses to report on nothing."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nt_dist.data.loader import EvaluationBatches
from nt_dist.data.mixture import Mixture
from nt_dist.data.samples import Sample
from nt_dist.errors import DataError
from nt_dist.evaluation.evaluate import EnsembleSums, evaluate, stream
from nt_dist.evaluation.evaluate_checkpoint import EverySecond
from nt_dist.llama.family import Llama
from nt_dist.parallel.place import MeshPlace

CONFIG = SimpleNamespace(trails=SimpleNamespace(count=2), data=SimpleNamespace(validation=0.02), family=Llama())


class Model(torch.nn.Module):
    """Two trails over 5 tokens, with dropout so that the mode shows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(2, 5, 5))
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, tokens):
        return self.dropout(self.table[:, tokens])


class Mesh:
    """A mesh whose other data rank has seen exactly what this one has."""

    device = torch.device("cpu")
    trail = tensor = SimpleNamespace(rank=0, degree=1)

    def __init__(self):
        self.reduced, self.place = [], MeshPlace(self)

    def all_reduce(self, tensor, axis_names, op="sum"):
        if axis_names == ("pipe", "data"):
            self.reduced.append((tensor.shape, op))
            tensor.mul_(2)
        return tensor


def _batch(seed, real=True):
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(5, (2, 3, 4), generator=generator)
    return SimpleNamespace(inputs=tokens, targets=targets, weights=torch.full((3, 4), float(real)))


def test_the_figures_of_all_batches_and_data_ranks_in_evaluation_mode():
    model, mesh, batches = Model().train(), Mesh(), [_batch(1), _batch(2)]
    result = evaluate(model, batches, mesh, CONFIG)
    assert model.training
    assert mesh.reduced == [(torch.Size([6]), "sum")]
    expected = EnsembleSums(2)
    for batch in batches:
        expected.add(model.table[:, batch.inputs].detach(), batch.targets, batch.weights)
    expected = Llama().figures(expected.means())
    assert result.pop("tokens") == 2 * expected.pop("tokens") == 48
    for key, value in expected.items():
        assert result[key] == pytest.approx(value), key


def test_a_mixture_is_measured_by_source_and_weighed_by_shares():
    """As if each source's samples had been evaluated as often as its share says."""
    parts = {"a": Tokens(1, 6), "b": Tokens(2, 3)}
    batches = EvaluationBatches(Mixture(parts, {"a": 0.25, "b": 0.75}), 2, 0)
    passed = []
    result = evaluate(Model(), batches, Mesh(), CONFIG, lambda some: passed.append(some) or some)
    sources = result.pop("sources")
    assert len(passed) == 2 and result.pop("tokens") == 2 * 4 * 9
    for name, part in parts.items():
        alone = evaluate(Model(), EvaluationBatches(part, 4, 0), Mesh(), CONFIG)
        for key, value in alone.items():
            assert sources[name][key] == pytest.approx(value), key
    for key in ("ppl_ensemble_prob", "ppl_ensemble_logit"):
        logs = [math.log(sources[name][key]) for name in "ab"]
        assert math.log(result[key]) == pytest.approx(0.25 * logs[0] + 0.75 * logs[1])
    sums = EnsembleSums(2)
    stream(Model(), batches, Mesh(), sums.add)
    full = Llama().figures(sums.means())  # of one pass over both, as of --full
    for key, value in result.items():
        assert full[key] == pytest.approx(value, rel=1e-6), key  # weights are fp32


class Tokens:
    """Samples of 4 tokens of 5 kinds."""

    def __init__(self, seed, count):
        self.rows = np.random.default_rng(seed).integers(5, size=(count, 5))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return Sample(self.rows[index][:-1], self.rows[index][1:], np.ones(4, dtype=np.float32))

    def blank(self):
        return Sample(np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.float32))


def test_the_mode_is_restored_after_an_error():
    model = Model().train()
    with pytest.raises(IndexError):
        evaluate(model, [SimpleNamespace(inputs=torch.tensor([[9]]))], Mesh(), CONFIG)
    assert model.training


def test_only_padding_is_bad_data():
    with pytest.raises(DataError, match=r"data\.validation = 0\.02.*real token"):
        evaluate(Model(), [_batch(1, real=False)], Mesh(), CONFIG)


def test_the_two_halves_are_all_samples_asked_for():
    rows = list("abcde")
    for asked, even, odd in ((0, "ace", "bd"), (4, "ac", "bd"), (3, "ad", "b"), (99, "ace", "bd")):
        for first, expected in ((0, even), (1, odd)):
            half = EverySecond(rows, asked, first)
            assert [half[number] for number in range(len(half))] == list(expected)
    assert len(EverySecond(rows, 1, 1)) == 0
    with pytest.raises(IndexError):
        EverySecond(rows, 4, 1)[2]
