"""The rules of the mesh."""

import pytest

from nt_dist.errors import ConfigError
from nt_dist.families import make_config


def problems_of(world_size, parallel, stage=1, **sections):
    sections = {"trails": {"count": 6}, "train": {"batch_size": 48, "micro_batch_size": 1}, **sections}
    with pytest.raises(ConfigError) as caught:
        make_config({**sections, "parallel": parallel}, {"zero_optimization": {"stage": stage}}, world_size)
    return caught.value.problems


@pytest.mark.parametrize(
    ("world_size", "parallel", "stage", "message", "nearest"),
    [
        (
            4,
            {"tensor": 3},
            1,
            "tensor × pipe × trail = 3 × 1 × 1 must divide the number of ranks, 4",
            (4, 1, 1),
        ),
        (3, {"tensor": 3}, 1, "parallel.tensor = 3 must divide model.num_attention_heads = 4", (1, 1, 1)),
        (3, {"tensor": 3}, 1, "parallel.tensor = 3 must divide model.ffn_size = 352", (1, 1, 1)),
        (3, {"tensor": 3}, 1, "parallel.tensor = 3 must divide sparsity.topology_shards = 8", (1, 1, 1)),
        (4, {"trail": 4}, 1, "parallel.trail = 4 must divide trails.count = 6", (1, 1, 2)),
        (8, {"pipe": 8}, 1, "parallel.pipe = 8 must be at most model.num_layers = 6", (1, 4, 1)),
        (4, {"pipe": 2}, 2, "parallel.pipe = 2 allows ZeRO stages 0 and 1", (1, 1, 1)),
    ],
)
def test_each_rule_and_the_nearest_layout(world_size, parallel, stage, message, nearest):
    found = problems_of(world_size, parallel, stage)
    assert any(message in problem for problem in found)
    shown = "parallel.tensor = {}, parallel.pipe = {}, parallel.trail = {} ".format(*nearest)
    assert f"the nearest layout that works on {world_size} ranks: {shown}" in found[-1]


def test_key_and_value_heads_limit_the_tensor_degree():
    found = problems_of(4, {"tensor": 4}, model={"num_kv_heads": 2})
    assert found[0] == "parallel.tensor = 4 must divide model.num_kv_heads = 2"
    assert "parallel.tensor = 2" in found[1]


def test_positions_are_dealt_out_in_equal_shares():
    sequence = {"tensor": 2, "sequence_parallel": True}
    (found, nearest) = problems_of(2, sequence, model={"max_seq_len": 7})
    assert found.endswith("deals positions out to the tensor ranks: parallel.tensor = 2 must divide the 7 of a text")
    assert "parallel.tensor = 1, " in nearest


def _trunk(trunk, micro=3, trail=2, **trails):
    sections = {"trails": {"count": 6, **trails}, "train": {"batch_size": 48, "micro_batch_size": micro}}
    return {**sections, "parallel": {"trail": trail, "trunk": trunk}}


def test_a_split_trunk_needs_a_micro_batch_that_divides():
    found = problems_of(2, **_trunk("split"))
    assert found[0] == (
        "parallel.trunk = 'split' deals a micro-batch out to the trail ranks: parallel.trail = 2 must divide "
        "train.micro_batch_size = 3; nearest: 2 or 4"
    )
    assert "parallel.trail = 1 " in found[1]


@pytest.mark.parametrize(
    ("sections", "is_split"),
    [
        (_trunk("auto"), False),
        (_trunk("auto", micro=4), True),
        (_trunk("split", micro=4), True),
        (_trunk("replicated", micro=4), False),
        (_trunk("split", trail=1), False),
        (_trunk("split", fork="embedding"), False),
    ],
)
def test_when_the_trunk_is_split(sections, is_split):
    assert make_config(sections, world_size=2).splits_trunk == is_split


def test_where_no_layout_works_none_is_named():
    found = problems_of(7, {"tensor": 7}, train={"batch_size": 48, "micro_batch_size": 48})
    assert not any("nearest layout" in problem for problem in found)


def test_layouts_that_work():
    sections = {
        "trails": {"count": 6},
        "train": {"batch_size": 8, "micro_batch_size": 1},
        "parallel": {"tensor": 2, "pipe": 2, "trail": 3},
    }
    config = make_config(sections, {"zero_optimization": {"stage": 1}}, world_size=24)
    assert (config.data_degree, config.accumulation_steps) == (2, 4)
