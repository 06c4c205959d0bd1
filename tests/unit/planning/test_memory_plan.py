"""The plan's formulas against bytes counted on real tensors, and against what each ZeRO stage should divide."""

import math
from dataclasses import replace

import pytest

from nt_dist.families import make_config
from nt_dist.model.trails import build_model, weights_of
from nt_dist.planning.memory import MemoryPlan, plan_memory, plan_stages, plan_table

STATE = ("weights", "masters", "gradients", "moments")


def _config(density=0.5, ranks=1, precision="fp32", stage=None, **sparsity):
    return make_config(
        {
            "model": {"hidden_size": 32, "ffn_size": 48, "num_layers": 3, "num_attention_heads": 4, "vocab_size": 61},
            "trails": {"count": 2, "layers": 2},
            "sparsity": {"density": density, "topology_shards": 4, **sparsity},
            "train": {
                "recipe": "paper",
                "batch_size": 8,
                "micro_batch_size": 1,
                "precision": precision,
                "warmup_steps": 0,
            },
        },
        None if stage is None else {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1000}},
        ranks,
    )


@pytest.mark.parametrize("storage", ["compact", "masked", "auto"])
@pytest.mark.parametrize("density", [0.2, 0.9, 1.0])
def test_weights_and_index_are_those_of_the_built_model(density, storage):
    config = _config(density, storage=storage)
    weights = weights_of(build_model(config)).values()
    plan = plan_memory(config)
    assert plan.weights == sum(weight.values.nbytes for weight in weights)
    assert plan.index == sum(buffer.nbytes for weight in weights for buffer in weight.buffers())
    assert sum(plan.storages.values()) == len(weights)
    assert (plan.gradients, plan.moments, plan.masters) == (plan.weights, 2 * plan.weights, 0)


@pytest.mark.parametrize(
    ("precision", "stage", "expected"),  # bytes for each stored value, on 8 ranks
    [
        ("fp32", 0, (4, 0, 8, 8)),
        ("fp32", 1, (4, 4 / 8, 4, 1)),
        ("fp32", 2, (4, 4 / 8, 4 / 8, 1)),
        ("fp32", 3, (4 / 8, 4 / 8, 4 / 8, 1)),
        ("bf16", 1, (2, 4 / 8, 6, 1)),
        ("bf16", 2, (2, 4 / 8, 4 / 8, 1)),
        ("bf16", 3, (2 / 8, 4 / 8, 4 / 8, 1)),
    ],
)
def test_each_stage_divides_what_it_should(precision, stage, expected):
    plan = plan_memory(_config(storage="compact", ranks=8, precision=precision, stage=stage))
    norms = 2 * 1 + 2 * 2 * 2 + 2  # the trunk's block, two blocks of two trails, final norms: dense, of 32 each
    stored = plan.index / 4 + norms * 32
    for kind, each in zip(STATE, expected, strict=True):
        assert getattr(plan, kind) == pytest.approx(each * stored, abs=1), kind


def test_sgd_has_one_moment_or_none_and_an_update_copies_no_more():
    plans = {}
    for momentum in (None, 0.9, 0.0):
        config = _config(storage="masked")
        if momentum is not None:
            train = replace(config.train, optimizer="sgd", momentum=momentum)
            config = replace(config, train=train)
        plans[momentum] = plan_memory(config)
    adamw, momentum, plain = plans.values()
    assert (adamw.moments, momentum.moments, plain.moments) == (2 * adamw.weights, adamw.weights, 0)
    assert adamw.update > momentum.update > plain.update


def test_an_average_takes_what_a_moment_does():
    config = _config(storage="masked")
    without, plan = plan_memory(config), plan_memory(replace(config, train=replace(config.train, average_decay=1.0)))
    assert plan.moments == without.moments + without.weights and plan.update > without.update


def test_buffers_are_the_jsons():
    assert plan_memory(_config(stage=0)).buffers == 0
    assert plan_memory(_config(stage=1)).buffers == 4000
    assert plan_memory(_config(stage=1, precision="bf16")).buffers == 0
    assert plan_memory(_config(stage=2, precision="bf16")).buffers == 2000
    gathered = plan_memory(_config(stage=3, ranks=2))
    assert gathered.buffers == 4000 + 2 * gathered.weights


def test_an_update_needs_its_dense_gradients_and_a_static_run_nothing():
    config = _config(storage="compact")
    weights = [weight for weight in weights_of(build_model(config)).values() if weight.spec.is_sparse]
    entries = sum(len(weight.trails) * math.prod(weight.local_shape) for weight in weights)
    assert plan_memory(config).update > 4 * entries
    assert plan_memory(_config(update_every=0)).update == 0
    blind = plan_memory(_config(storage="compact", grow="random", new_moments="zero")).update
    assert 0 < blind < plan_memory(config).update


def test_stages_begin_where_the_precision_allows_and_sum_up():
    assert [plan.stage for plan in plan_stages(_config())] == [0, 1, 2, 3]
    config = _config(precision="bf16", ranks=4)
    plans = plan_stages(config)
    assert [plan.stage for plan in plans] == [1, 2, 3]
    assert plans[0].total == sum(getattr(plans[0], kind) for kind in MemoryPlan.KINDS)
    assert plans[0].gradients > plans[1].gradients > 0
    lines = plan_table(config, plans).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert f"{plans[2].moments / 2**20:,.1f}" in lines[-1]
