"""The kernels of groups by Triton's interpreter, against the dense product; without Triton there is nothing to test."""

import os

import pytest
import torch

from nt_dist.sparsity import grouped
from nt_dist.sparsity.grouped import TritonLinear
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES

os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined, that is at their import below
pytest.importorskip("triton", reason="needs Triton: pip install triton")

SPECS = [
    WeightSpec("several trails", (48, 40), 0, trails=3, shards=2, density=0.4, group=8),
    WeightSpec("several steps over inputs", (32, 90), 0, shards=1, density=0.5, group=16),
    WeightSpec("several tiles in a group", (150, 24), 0, shards=1, density=0.25, group=140),
    WeightSpec("ragged last group", (42, 40), 0, trails=2, shards=2, density=0.3, group=9),
    WeightSpec("padded", (48, 24), 0, trails=2, shards=4, valid=32, density=0.5, group=5),  # the last shard is empty
    WeightSpec("blocks", (42, 40), 0, trails=2, shards=2, density=0.3, group=9, block=4),
    WeightSpec("cut along inputs", (44, 48), 1, trails=3, shards=4, density=0.4, group=16),
    WeightSpec("padded inputs", (14, 48), 1, trails=2, shards=4, valid=29, density=0.5, group=4),
]


@pytest.mark.parametrize(
    "dtype, tokens", [(torch.float32, 71), (torch.float16, 71), (torch.bfloat16, 16), (torch.float32, 1)], ids=str
)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_kernels_are_the_dense_product_and_its_gradients(spec, tokens, dtype):
    weight = STORAGES["grouped"](spec)
    weight.reset(5)
    weight.to(dtype)
    out, inside = weight.local_shape
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(spec.trails, tokens, inside, generator=generator).to(dtype).requires_grad_()
    seed = torch.randn(spec.trails, tokens, out, generator=generator).to(dtype)
    weight.collecting = True
    result = TritonLinear.apply(x, weight.values, weight)
    got_x, got_values = torch.autograd.grad(result, (x, weight.values), seed)
    dense, exact_x, seed = weight.build(weight.values).float(), x.detach().float(), seed.float()
    of_dense = seed.mT @ exact_x
    close = {} if dtype == torch.float32 else {"rtol": 2e-2 if dtype == torch.bfloat16 else 2e-3, "atol": 1e-3}
    torch.testing.assert_close(result.float(), exact_x @ dense.mT, **close)
    torch.testing.assert_close(got_x.float(), seed @ dense, **close)
    torch.testing.assert_close(got_values.float(), of_dense.flatten(1).gather(1, weight.slot_index()), **close)
    torch.testing.assert_close(weight.dense_gradient, of_dense, **close)
    assert result.dtype == got_x.dtype == got_values.dtype == dtype


def test_trails_that_share_their_input_share_one_copy():
    weight = STORAGES["grouped"](SPECS[0])
    weight.reset(5)
    x = torch.randn(1, 7, 40).expand(3, -1, -1)
    torch.testing.assert_close(TritonLinear.apply(x, weight.values, weight), x @ weight.build(weight.values).mT)
    assert grouped.features_first(x).stride(0) == 0
    nothing = STORAGES["grouped"](SPECS[4], None, range(3, 4))
    nothing.reset(5)
    assert not TritonLinear.apply(torch.randn(2, 7, 24), nothing.values, nothing).any()
