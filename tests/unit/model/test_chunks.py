"""Losses computed some positions at a time are those of all logits at once, gradients too."""

import pytest
import torch

from nt_dist.model import chunks
from nt_dist.model.losses import objective
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model, weights_of
from tests.unit.model.tiny import tiny

TOKENS = torch.randint(101, (2, 14), generator=torch.Generator().manual_seed(0))
CASES = {
    "compact": {},
    "masked": {"sparsity": {"storage": "masked"}},
    "dense": {"sparsity": {"density": 1.0}},
    "groups": {"sparsity": {"structure": "groups", "group_size": 8, "storage": "auto", "topology_shards": 1}},
    "padding": {"sparsity": {"topology_shards": 4}},
    "smoothed": {"train": {"label_smoothing": 0.1}},
    "joint, logits": {"trails": {"joint": 0.5}},
    "joint, probabilities": {"trails": {"joint": 0.5, "joint_mean": "probabilities"}},
}


def _pass(config, collecting=False, dtype=torch.float32):
    model = build_model(config).to(dtype)
    for weight in weights_of(model).values():
        weight.collecting = collecting
    labels = torch.ones(2, 13)
    labels[0, 9:] = 0.0
    sums = model(TOKENS[:, :-1], TOKENS[:, 1:], labels)
    (objective(sums, config.joint_weight(1)) * 0.25).backward()
    dense = [each.dense_gradient for each in weights_of(model).values() if collecting and each.spec.is_sparse]
    return [sums.detach(), *(each.grad for each in model.parameters()), *dense]


@pytest.mark.parametrize("collecting", [False, True], ids=["ordinary", "collecting"])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_in_chunks_are_those_of_all_logits_at_once(name, collecting, monkeypatch):
    config = tiny(**CASES[name])
    whole = _pass(config, collecting)
    monkeypatch.setitem(chunks.LOGITS_AT_ONCE, "cpu", 5 * 3 * 104)  # of 26 positions
    for found, expected in zip(_pass(config, collecting), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_in_bf16_they_are_to_rounding_and_logits_never_stand_whole(monkeypatch):
    config, shapes, sums = tiny(), [], Place.trail_losses
    whole = _pass(config, dtype=torch.bfloat16)
    monkeypatch.setitem(chunks.LOGITS_AT_ONCE, "cpu", 5 * 3 * 104)
    monkeypatch.setattr(Place, "trail_losses", lambda *words: shapes.append(words[1].shape) or sums(*words))
    for found, expected in zip(_pass(config, dtype=torch.bfloat16), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
    assert [shape[2] for shape in shapes] == [5, 5, 5, 5, 5, 1]
