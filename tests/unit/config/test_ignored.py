"""Warnings about settings that change nothing."""

import pytest

from nt_dist.config.rules import warnings
from nt_dist.families import make_config


def test_nothing_is_ignored_by_default():
    assert not list(warnings(make_config({})))
    assert not list(warnings(make_config({"sparsity": {"density": 1.0}, "trails": {"count": 1}})))
    assert not list(warnings(make_config({"train": {"recipe": "paper"}})))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sparsity": {"density": 1.0, "drop": "set"}}, "sparsity.drop = 'set' is ignored: sparsity.density = 1.0"),
        (
            {"sparsity": {"update_every": 0, "drop_fraction": 0.3}},
            "sparsity.drop_fraction = 0.3 is ignored: sparsity.update_every = 0",
        ),
        (
            {"sparsity": {"drop": "magnitude", "temperature": 2.0}},
            "sparsity.temperature = 2.0 is ignored: sparsity.drop = 'magnitude'",
        ),
        (
            {"sparsity": {"grow": "random", "new_moments": "zero", "regrow_from": "last_micro_batch"}},
            "sparsity.regrow_from = 'last_micro_batch' is ignored: sparsity.grow = 'random'",
        ),
        ({"train": {"momentum": 0.5}}, "train.momentum = 0.5 is ignored: train.optimizer = 'adamw'"),
        ({"train": {"nesterov": True}}, "train.nesterov = True is ignored: train.optimizer = 'adamw'"),
        (
            {"train": {"optimizer": "sgd", "adam_eps": 1e-4}},
            "train.adam_eps = 0.0001 is ignored",
        ),
        ({"train": {"optimizer": "sgd", "betas": [0.9, 0.95]}}, "train.betas = (0.9, 0.95) is ignored"),
        ({"sparsity": {"stop_fraction": 0.01}}, "the topology is never updated"),
        ({"train": {"steps": 50, "warmup_steps": 5}}, "the topology is never updated"),
        ({"trails": {"fork": "embedding", "layers": 3}}, "trails.layers = 3 is ignored: trails.fork = 'embedding'"),
        (
            {"trails": {"joint": 0.0, "joint_mean": "probabilities"}},
            "trails.joint_mean = 'probabilities' is ignored: trails.joint = 0.0",
        ),
        (
            {"trails": {"layers": 6}, "train": {"betas_trunk": [0.9, 0.9]}},
            "train.betas_trunk = (0.9, 0.9) is ignored: the",
        ),
        (
            {"train": {"weight_decay_output": 0.0}},
            "train.weight_decay_output = 0.0 is ignored: train.weight_decay = 0.0",
        ),
        ({"train": {"optimizer": "sgd", "betas_output": [0.9, 0.9]}}, "train.betas_output = (0.9, 0.9) is ignored"),
        ({"trails": {"count": 1, "joint": 0.5}}, "trails.joint = 0.5 is ignored: trails.count = 1"),
        (
            {"trails": {"joint_schedule": "linear"}, "train": {"recipe": "paper"}},
            "trails.joint_schedule = 'linear' is ignored: trails.joint = 0.0",
        ),
        (
            {"trails": {"joint_schedule": "constant", "joint_start": 0.1}},
            "trails.joint_start = 0.1 is ignored: trails.joint_schedule",
        ),
        ({"trails": {"layers": 6}, "train": {"lr_trunk": 2.0}}, "train.lr_trunk = 2.0 is ignored: the trails begin"),
        ({"train": {"average_from": 0.5}}, "train.average_from = 0.5 is ignored: train.average_decay = 0.0"),
        (
            {"train": {"precision": "bf16", "tf32": True}},
            "train.tf32 = True is ignored: train.precision = 'bf16'",
        ),
        ({"parallel": {"trunk": "split"}}, "parallel.trunk = 'split' is ignored: parallel.trail = 1"),
        ({"data": {"path": "x"}}, "data.path = 'x' is ignored: data.source = 'stdlib'"),
        ({"data": {"source": "jsonl", "path": "x", "subset": "en"}}, "data.subset = 'en' is ignored"),
        ({"data": {"text_key": "t"}}, "data.text_key = 't' is ignored: data.source = 'stdlib'"),
        ({"data": {"source": "text", "path": "x", "text_key": "t"}}, "data.text_key = 't' is ignored"),
        ({"run": {"stop_after": 1000}}, "run.stop_after = 1000 is ignored: train.steps = 1000"),
        ({"run": {"keep_every": 700}}, "run.keep_every = 700 is no multiple of run.save_every = 500"),
        ({"run": {"keep_every": 700, "save_every": 0}}, "run.keep_every = 700 is no multiple"),
    ],
)
def test_each_ignored_setting_is_named_once(sections, message):
    (found,) = warnings(make_config(sections))
    assert message in found


def test_a_trunk_that_is_not_there_cannot_be_split():
    sections = {"trails": {"fork": "embedding", "layers": 6}, "parallel": {"trail": 3, "trunk": "split"}}
    (found,) = warnings(make_config(sections, world_size=3))
    assert found == "parallel.trunk = 'split' is ignored: trails.fork = 'embedding' leaves no trunk"


def test_settings_that_count_are_not_named():
    sections = {
        "sparsity": {"drop": "magnitude", "update_every": 100},
        "data": {"source": "hf", "path": "x", "subset": "en", "text_key": "t"},
        "train": {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
        "run": {"stop_after": 10, "keep_every": 1000},
    }
    assert not list(warnings(make_config(sections)))
    beside_stdlib = {"text_key": "t", "validation": "x.jsonl"}
    assert not list(warnings(make_config({"data": beside_stdlib})))


def test_blocks_that_nothing_divides_are_said():
    model = {"hidden_size": 64, "ffn_size": 8 * 35, "num_attention_heads": 4}

    def said(size, **sparsity):
        sections = {"model": model, "sparsity": {"structure": "blocks", "group_size": size, "density": 0.2, **sparsity}}
        return [each for each in warnings(make_config(sections)) if "one input wide" in each]

    (message,) = said(4)  # 35 inputs a shard of down
    assert message.startswith("sparsity.group_size = 4: blocks of blocks.") and ".mlp.down are one" in message
    assert message.endswith("nearest: 5")
    assert not said(5) and not said(4, structure="groups") and not said(4, exempt=["*.mlp.down"])
