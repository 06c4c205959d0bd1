"""An ensemble whose matrices are bitmaps writes what it wrote before."""

import pytest
import torch

from nt_dist.inference import load_ensemble, sparse
from nt_dist.inference.generate import Sampling, generate
from nt_dist.inference.sparse import BitmapLinear, hold_sparse
from nt_dist.llama.layers import Cache

from .trained_run import write_run

TOKENS = torch.randint(0, 331, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained"))


def answers(ensemble):
    cache = Cache()
    parts = [ensemble.logits(TOKENS[:, :-1], cache), ensemble.logits(TOKENS[:, -1:], cache)]
    pieces = generate(ensemble, "The old", 30, Sampling(temperature=0))
    return ensemble.logits(TOKENS), torch.cat(parts, 2), "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_and_texts_are_those_of_dense_matrices(run, dtype):
    dense, held = load_ensemble(run), load_ensemble(run)
    assert hold_sparse(held.model, dtype, "sparse") == 3 * 7 + 1  # those of all trails of a layer are held together
    for each in dense.model.modules():
        if hasattr(each, "lay_out"):
            each.weight.values.copy_(each.weight.values.to(dtype))
    for found, expected in zip(answers(held), answers(dense), strict=True):
        if isinstance(found, str):
            assert found == expected != ""
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    kept = [each for each in held.model.modules() if isinstance(each, BitmapLinear)]
    assert all(each.weight.values.numel() == 0 and each.matrices.dtype == dtype for each in kept)


def test_only_what_is_faster_is_replaced(run, monkeypatch):
    ensemble = load_ensemble(run)
    monkeypatch.setattr(sparse.Chooser, "__call__", lambda self, matrices: matrices.shape[1] == 48)
    before = ensemble.logits(TOKENS)
    assert hold_sparse(ensemble.model) == 2 * 3  # gate and up
    torch.testing.assert_close(ensemble.logits(TOKENS), before, rtol=1e-4, atol=1e-4)
