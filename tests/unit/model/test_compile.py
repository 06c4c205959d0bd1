"""The losses and their gradients as one graph are those of the layers one by one."""

from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder, exc

from nt_dist.model import chunks, trails
from nt_dist.model.trails import build_model, weights_of
from tests.unit.model.tiny import tiny


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch):
    monkeypatch.setattr(trails, "BACKEND", "aot_eager")  # traced and cut into forward and backward, not translated
    torch._dynamo.reset()
    counters.clear()


def _config(checkpointing=False):
    model = {"hidden_size": 16, "ffn_size": 24, "num_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1}
    train = {"activation_checkpointing": checkpointing, "label_smoothing": 0.1}
    trails = {"count": 2, "layers": 1, "joint": 0.5}
    return tiny(model=model, trails=trails, train=train)


def _losses_and_gradients(model):
    tokens = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.ones(2, 8)
    weights[1, 5:] = 0.0
    model.zero_grad()
    sums = model(tokens[:, :-1], tokens[:, 1:], weights)
    sums.sum().backward()
    return [sums.detach(), *(each.grad.clone() for each in model.parameters())]


def _assert_alike(found, expected):
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-5)


def test_one_graph_gives_the_same_losses_and_gradients_also_after_a_topology_update(monkeypatch):
    monkeypatch.setitem(chunks.LOGITS_AT_ONCE, "cuda", 5 * 2 * 101)  # of 16 positions; a graph takes a GPU's
    model = build_model(_config(checkpointing=True))
    eager = _losses_and_gradients(model)
    model.compile_losses()
    _assert_alike(_losses_and_gradients(model), eager)
    for weight in weights_of(model).values():
        weight.reset(seed=99)  # in place, as an update does
    compiled, model._compiled = _losses_and_gradients(model), None
    _assert_alike(compiled, _losses_and_gradients(model))
    assert not torch.equal(compiled[0], eager[0])
    assert counters["stats"]["unique_graphs"] == 1


def test_passes_that_collect_dense_gradients_are_not_compiled():
    model = build_model(_config())
    model.compile_losses()
    for weight in weights_of(model).values():
        weight.collecting = True
    _losses_and_gradients(model)
    assert all(weight.dense_gradient is not None for weight in weights_of(model).values() if weight.spec.is_sparse)
    assert not counters["stats"]


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    said = []
    monkeypatch.setattr(trails.LOGGER, "warning", said.append)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", mock.Mock(side_effect=exc.InvalidCxxCompiler))
    model = build_model(_config())
    model.compile_losses()
    _losses_and_gradients(model)
    assert len(said) == 1 and not counters["stats"]
