"""All figures are the same however trails, pieces and sequences are cut over ranks."""

import numpy as np
import pytest
import torch

from nt_dist.data.loader import Batch
from nt_dist.evaluation import predictions
from nt_dist.evaluation.evaluate import evaluate
from nt_dist.evaluation.full import evaluate_fully
from nt_dist.families import make_config
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed

TRAILS, VOCABULARY, PADDED, SEQUENCE, ROWS = 4, 13, 16, 6, 4


class Model(torch.nn.Module):
    """Trails that look their logits up, of which a rank has its trails, its pieces and, at the end of a pipe, any."""

    def __init__(self, mesh):
        super().__init__()
        table = 3 * torch.randn(TRAILS, VOCABULARY, PADDED, generator=torch.Generator().manual_seed(0))
        table[..., VOCABULARY:] = -torch.inf
        table = table.chunk(mesh.trail.degree, 0)[mesh.trail.rank]
        self.table = table.chunk(mesh.tensor.degree, -1)[mesh.tensor.rank]
        self.is_last = mesh.pipe.rank == mesh.pipe.degree - 1

    def forward(self, tokens):
        return self.table[:, tokens] if self.is_last else None


def _batches(mesh, seed):
    """Three global batches with ragged rows, the last one half padding; this data rank's rows of each."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(3):
        rows = torch.randint(VOCABULARY, (ROWS, SEQUENCE + 1), generator=generator)
        lengths = torch.randint(1, SEQUENCE + 1, (ROWS,), generator=generator)
        if number == 2:
            lengths[ROWS // 2 :] = 0
        weights = (torch.arange(SEQUENCE) < lengths[:, None]).float()
        parts = (part.chunk(mesh.data.degree)[mesh.data.rank] for part in (rows[:, :-1], rows[:, 1:], weights))
        yield Batch(*parts)


def _figures(rank, world_size, degrees):
    predictions.CHUNK_ENTRIES = 5 * (TRAILS + 2) * PADDED  # a few tokens a chunk
    config = make_config({"trails": {"count": TRAILS, "layers": 1}, "parallel": degrees}, None, world_size)
    mesh = init_mesh(config)
    model = Model(mesh).train()
    figures, scores = evaluate_fully(model, _batches(mesh, 1), mesh, config, _batches(mesh, 2))
    plain = evaluate(model, [*_batches(mesh, 1), *_batches(mesh, 2)], mesh, config)
    assert model.training and all(figures[key] == pytest.approx(value) for key, value in plain.items())
    without, _ = evaluate_fully(model, _batches(mesh, 1), mesh, config)
    assert "temperature" not in without["calibration"] and without["tokens"] < figures["tokens"]
    return figures, np.sort(scores, axis=0)


def _flat(thing, name=""):
    """Nested figures as {path: number}; -1 for the mean of an empty bin."""
    if isinstance(thing, dict):
        items = thing.items()
    elif isinstance(thing, list):
        items = enumerate(thing)
    else:
        return {name: -1 if thing is None else thing}
    return {path: value for key, each in items for path, value in _flat(each, f"{name}/{key}").items()}


@pytest.fixture(scope="module")
def alone():
    return run_distributed(_figures, 1, {})[0]


@pytest.mark.parametrize(
    "world_size,degrees",
    [(2, {}), (2, {"tensor": 2}), (2, {"trail": 2}), (2, {"pipe": 2}), (4, {"trail": 2, "tensor": 2})],
)
def test_they_are_those_of_one_rank(alone, world_size, degrees):
    (expected, expected_scores), expected_flat = alone, _flat(alone[0])
    results = run_distributed(_figures, world_size, degrees)
    for figures, scores in results:
        found = _flat(figures)
        assert list(found) == list(expected_flat)
        for name, value in expected_flat.items():
            assert found[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
        assert scores == pytest.approx(expected_scores, rel=1e-4, abs=1e-6)
        assert found == _flat(results[0][0])
    assert len(expected_scores) == 2 * (2 * ROWS + ROWS // 2) and expected["diversity"]["mutual_information"] > 0.1
