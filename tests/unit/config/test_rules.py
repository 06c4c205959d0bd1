"""Rules over several settings: what breaks one is named with its keys, its values and what would do."""

import tomllib

import pytest

from nt_dist.config.rules import with_epochs
from nt_dist.errors import ConfigError
from nt_dist.families import make_config


def problems_of(world_size=1, **sections):
    with pytest.raises(ConfigError) as caught:
        make_config(sections, world_size=world_size)
    return caught.value.problems


ONE = [
    (
        {"model": {"num_attention_heads": 5}},
        "model.num_attention_heads = 5 must divide model.hidden_size = 128; nearest: 4 or 8",
    ),
    (
        {"model": {"hidden_size": 24, "num_attention_heads": 8}},
        "model.hidden_size / model.num_attention_heads = 3 must be even: the rotary embedding turns pairs",
    ),
    (
        {"model": {"num_kv_heads": 3}},
        "model.num_kv_heads = 3 must divide model.num_attention_heads = 4; nearest: 2 or 4",
    ),
    (
        {"trails": {"layers": 7}},
        "trails.layers = 7 must be at most model.num_layers = 6: a trail is the last blocks of the model",
    ),
    (
        {"model": {"ffn_size": 350}},
        "sparsity.topology_shards = 8 must divide model.ffn_size = 350; nearest: 344 or 352",
    ),
    (
        {"model": {"hidden_size": 132, "num_attention_heads": 2}},
        "sparsity.topology_shards = 8 must divide model.hidden_size = 132; nearest: 128 or 136",
    ),
    (
        {"model": {"hidden_size": 48, "num_kv_heads": 1}},
        "sparsity.topology_shards = 8 must divide model.num_kv_heads × head size = 12; nearest: 8 or 16",
    ),
    (
        {"sparsity": {"exempt": ["embedding", "outputs"]}},
        "sparsity.exempt: no weight is named 'outputs'; did you mean output?",
    ),
    (
        {"sparsity": {"exempt": ["blocks.6.*"]}},
        "sparsity.exempt: no weight is named 'blocks.6.*'",
    ),
    (
        {"train": {"optimizer": "sgd", "mup_base_hidden": 128}},
        "train.mup_base_hidden = 128 needs train.optimizer = 'adamw', whose rates it scales",
    ),
    (
        {
            "model": {"family": "resnet"},
            "data": {"source": "digits"},
            "train": {"mup_base_hidden": 64, "optimizer": "adamw", "micro_batch_size": 32},
        },
        "train.mup_base_hidden = 64 must be 0 with model.family = 'resnet': initial values follow the widths",
    ),
    (
        {"train": {"optimizer": "sgd"}, "sparsity": {"new_moments": "gradient"}},
        "sparsity.new_moments = 'gradient' is a second moment, which train.optimizer = 'sgd' does not have",
    ),
    (
        {"train": {"optimizer": "sgd"}, "sparsity": {"new_moments": "mean"}},
        "sparsity.new_moments = 'mean' is a second moment, which train.optimizer = 'sgd' does not have",
    ),
    (
        {"train": {"optimizer": "sgd", "momentum": 0.0, "nesterov": True}},
        "train.nesterov = true needs train.momentum above 0",
    ),
    (
        {"sparsity": {"structure": "groups", "group_size": 257, "exempt": []}},
        "sparsity.group_size = 257 must be at most 256, the outputs of a shard of output, which has the most; "
        "nearest: 256",
    ),
    (
        {"sparsity": {"structure": "groups", "group_size": 200, "exempt": ["output"]}, "model": {"ffn_size": 1024}},
        "sparsity.group_size = 200 must be at most 128, the outputs of a shard of blocks.5.mlp.up",
    ),
    ({"train": {"momentum": 1.0}}, "train.momentum = 1.0 must be in [0, 1)"),
    (
        {"sparsity": {"grow": "random", "new_moments": "gradient"}},
        "sparsity.new_moments = 'gradient' needs sparsity.grow = 'gradient', not 'random'",
    ),
    ({"data": {"source": "jsonl"}}, "data.path = '' must name files, folders or patterns with data.source = 'jsonl'"),
    ({"data": {"source": "text", "path": ["a", ""]}}, "must name files, folders or patterns"),
    ({"data": {"source": "text", "path": []}}, "must name files, folders or patterns"),
    ({"data": {"source": "hf"}}, "data.path = '' must name a dataset with data.source = 'hf'"),
    ({"data": {"source": "hf", "path": ["a", "b"]}}, "data.path = ['a', 'b'] must be one name"),
    ({"data": {"layout": "rows"}, "model": {"max_seq_len": 1}}, "model.max_seq_len = 1 must be at least 2"),
    ({"train": {"warmup_steps": 1001}}, "train.warmup_steps = 1001 must be at most train.steps = 1000"),
]


@pytest.mark.parametrize(("sections", "message"), ONE)
def test_each_rule(sections, message):
    (found,) = problems_of(**sections)
    assert message in found


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"num_kv_heads": 2}},
        {"trails": {"layers": 6}},
        {"trails": {"layers": 9, "fork": "embedding"}},
        {"model": {"ffn_size": 350}, "sparsity": {"topology_shards": 2}},
        {"sparsity": {"exempt": ["embedding", "blocks.5.attention.*", "*.down", "output"]}},
        {"sparsity": {"grow": "random", "new_moments": "gradient", "update_every": 0}},
        {"sparsity": {"grow": "random", "new_moments": "mean"}},
        {"train": {"optimizer": "sgd", "nesterov": True}},
        {"train": {"optimizer": "sgd"}, "sparsity": {"new_moments": "gradient", "update_every": 0}},
        {"train": {"steps": 5, "warmup_steps": 5}},
        {"model": {"vocab_size": 4099}},
        {"sparsity": {"structure": "groups", "group_size": 256, "exempt": []}},
        {"sparsity": {"structure": "groups", "group_size": 257, "topology_shards": 4, "exempt": []}},
        {"sparsity": {"group_size": 257}},
        {"sparsity": {"structure": "blocks", "group_size": 256, "exempt": []}},
    ],
)
def test_what_is_allowed(sections):
    assert make_config(sections).to_dict().keys() == make_config({}).to_dict().keys()


def test_a_batch_that_does_not_divide_names_what_would():
    (found,) = problems_of(world_size=4, train={"batch_size": 48, "micro_batch_size": 16})
    assert found == (
        "train.batch_size = 48 must be a multiple of train.micro_batch_size × data degree = 16 × 4; nearest: 64; "
        "or train.micro_batch_size = 12; or a data degree of 1 or 3"
    )
    (found,) = problems_of(world_size=7, train={"batch_size": 512, "micro_batch_size": 8})
    assert found.endswith("nearest: 504 or 560; or a data degree of 1 or 2 or 4")  # a host of eight was lost


def test_a_wrong_value_does_not_make_others_wrong():
    found = problems_of(model={"hidden_size": "wide", "num_attention_heads": 3}, train={"batch_size": 0})
    assert found == ["model.hidden_size = 'wide' must be an integer", "train.batch_size = 0 must be at least 1"]
    found = problems_of(model={"vocab_size": "many"}, sparsity={"structure": "groups", "group_size": 9999})
    assert found == ["model.vocab_size = 'many' must be an integer"]


def test_exempt_is_checked_against_the_names_of_the_model():
    from nt_dist.model.weights import weight_specs  # imports torch

    config = make_config({"model": {"num_layers": 5}})
    assert config.family.weight_names(config) == list(weight_specs(config))


@pytest.mark.parametrize("model", [{"hidden_size": 100}, {"family": "resnet", "width": 12}])
def test_exempt_is_checked_beside_shards_that_divide_nothing(model):
    found = problems_of(model=model, sparsity={"exempt": ["nothing"]})
    assert any("sparsity.exempt: no weight is named 'nothing'" in problem for problem in found)
    assert any("sparsity.topology_shards = 8 must divide" in problem for problem in found)


def test_epochs_become_steps_once_the_samples_are_counted():
    config = make_config({"train": {"epochs": 2.5, "batch_size": 16, "warmup_steps": 2000}})
    found = with_epochs(config, 16 * 1000)
    assert (found.train.steps, found.train.epochs) == (2500, 2.5)
    with pytest.raises(ConfigError, match=r"train.warmup_steps = 2000 must be at most train.steps = 25"):
        with_epochs(config, 160)


def test_tokens_say_how_many_steps():
    config = make_config({"train": {"tokens": 32 * 128 * 10 + 1, "warmup_steps": 2}})
    assert (config.train.steps, config.train.tokens) == (11, 32 * 128 * 10 + 1)
    assert make_config(tomllib.loads(config.to_toml())) == config
    with pytest.raises(ConfigError, match="train.warmup_steps = 12 must be at most train.steps = 11"):
        make_config({"train": {"tokens": 32 * 128 * 10 + 1, "warmup_steps": 12}})
    with pytest.raises(ConfigError, match="train.tokens = 9 and train.epochs = 1.0: only one"):
        make_config({"train": {"tokens": 9, "epochs": 1.0, "warmup_steps": 0}})


@pytest.mark.parametrize("span", ["10", "0:3", "4:3", "a:b", "1:2:3"])
def test_a_profile_is_of_two_steps(span):
    with pytest.raises(ConfigError, match="must be two steps, as in 10:12"):
        make_config({"run": {"profile": span}})
    assert make_config({"run": {"profile": "3:4"}}).run.profile == "3:4"


def test_loggers_are_known_ones():
    assert make_config({"run": {"loggers": ["wandb", "mlflow"]}}).run.loggers == ("wandb", "mlflow")
    with pytest.raises(ConfigError, match=r"run.loggers = .*must be some of tensorboard, wandb, mlflow"):
        make_config({"run": {"loggers": ["tensorbord"]}})


@pytest.mark.parametrize(
    ("stage", "sections", "message"),
    [
        (3, {}, "train.compile = true allows ZeRO stages 0, 1 and 2, not zero_optimization.stage = 3"),
        (0, {"parallel": {"tensor": 2}}, "train.compile = true needs parallel.tensor = 1, not 2"),
        (0, {"parallel": {"pipe": 2}}, "train.compile = true needs parallel.pipe = 1, not 2"),
        (0, {"parallel": {"trail": 2}, "trails": {"count": 4}}, "train.compile = true needs parallel.trail = 1, not 2"),
        (0, {"sparsity": {"structure": "blocks"}}, "needs sparsity.structure = 'entries', not 'blocks'"),
        (0, {"model": {"family": "resnet"}}, "train.compile = true is not for model.family = 'resnet'"),
    ],
)
def test_what_cannot_be_one_graph_is_not_compiled(stage, sections, message):
    def problems(compiles):
        with pytest.raises(ConfigError) as caught:
            make_config(
                sections | {"train": {"compile": compiles, "steps": 0}}, {"zero_optimization": {"stage": stage}}, 2
            )
        return str(caught.value)

    assert message in problems(True) and message not in problems(False)
    make_config({"train": {"compile": True}}, {"zero_optimization": {"stage": 2}}, 2)


def test_no_dense_copies_stay_where_no_weight_is_whole():
    with pytest.raises(ConfigError, match="train.keep_dense = true allows ZeRO stages 0, 1 and 2, not zero_optim"):
        make_config({"train": {"keep_dense": True}}, {"zero_optimization": {"stage": 3}}, 2)
