"""State that is no weight: fp32 through every cast, no Parameter, cut as weights are."""

import dataclasses

import pytest
import torch
from torch import nn

from nt_dist.model.flops import token_flops
from nt_dist.model.trails import build_model, statistics_of, weights_of
from nt_dist.model.weights import count_parameters
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.statistic import Statistic
from tests.unit.model.tiny import tiny
from tests.unit.model.with_statistics import with_statistics

SPEC = WeightSpec("mean", (6,), trails=2, shards=3, init=0.0, role="statistic", in_trail=True, layer="output", uses=0)


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, lambda module: module.to("cpu", torch.bfloat16)])
def test_stays_exact_when_its_model_is_cast(cast):
    model = nn.Sequential(nn.Linear(2, 2), Statistic(SPEC))
    model[1].values.fill_(1.0 + 2.0**-20)
    cast(model)
    assert model[0].weight.dtype != torch.float32
    assert model[1].values.dtype == torch.float32 and (model[1].values == 1.0 + 2.0**-20).all()
    assert not list(model[1].parameters()) and statistics_of(model) == {"mean": model[1]}


def test_is_cut_and_filled_as_its_spec_says():
    part = Statistic(SPEC, range(1, 2), range(1, 3))
    assert part.values.shape == (1, 4) and not part.values.any()
    ones = Statistic(dataclasses.replace(SPEC, init=None), device="meta")
    assert ones.to_empty(device="cpu").values.shape == (2, 6)
    assert (Statistic(dataclasses.replace(SPEC, init=None)).values == 1).all()


def test_a_family_has_its_statistics_in_the_table_of_weights():
    plain = tiny()
    config = with_statistics(plain)
    model = build_model(config)
    assert statistics_of(model)["mean"].values.shape == (3, 6)
    assert (statistics_of(model)["spread"].values == torch.ones(1, 3, 8)).all()
    assert weights_of(model).keys() == weights_of(build_model(plain)).keys()
    assert count_parameters(config) == count_parameters(plain) and token_flops(config) == token_flops(plain)
