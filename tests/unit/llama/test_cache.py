"""Token by token through a cache gives what all tokens at once give, and the trunk's keys and values are held once."""

import pytest
import torch

from nt_dist.inference.ensemble import Ensemble
from nt_dist.llama.layers import Cache
from nt_dist.model.trails import build_model, weights_of
from tests.unit.model.tiny import tiny

TOKENS = torch.randint(0, 101, (2, 80), generator=torch.Generator().manual_seed(1))


def ensemble(**sections):
    config = tiny(**sections)
    model = build_model(config).requires_grad_(False)
    for weight in weights_of(model).values():
        if weight.spec.role != "scale":
            weight.values.mul_(8.0)  # as drawn, attention is all but uniform
    return Ensemble(model, config, None, None, None)


@pytest.mark.parametrize("fork", ["blocks", "embedding"])
def test_steps_equal_one_pass(fork):
    model = ensemble(trails={"fork": fork})
    whole, cache = model.logits(TOKENS), Cache()
    pieces = [model.logits(part, cache) for part in TOKENS.split([5, 1, 1, 7, 1, 64, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-5, atol=1e-5)
    assert cache.length == 80
    token, elements = 2 * 2 * 8 * 4, 2 * 80  # keys and values of 2 heads of 8 in fp32; sequences, tokens
    blocks = 3 * 3 if fork == "embedding" else 1 + 3 * 2
    held = [each for block in cache.values() for each in (block._keys, block._values)]
    assert sum(each[:, :, :80].nbytes for each in held) == blocks * token * elements
