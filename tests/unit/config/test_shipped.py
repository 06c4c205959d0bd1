"""The configs that are shipped: each parses, alone and with the DeepSpeed JSONs, and says what it should."""

from dataclasses import replace
from pathlib import Path

import pytest

from nt_dist.config.rules import warnings
from nt_dist.config.settings import by_key
from nt_dist.errors import ConfigError
from nt_dist.families import load_config
from nt_dist.model.weights import count_parameters

CONFIGS = Path(__file__).parents[3] / "configs"
TOML = sorted([*CONFIGS.glob("*.toml"), *CONFIGS.glob("paper/*.toml")])
LLAMA = {
    "llama_60m": (512, 1376, 8, 8),
    "llama_130m": (768, 2048, 12, 12),
    "llama_350m": (1024, 2736, 24, 16),
    "llama_1b": (2048, 5504, 24, 32),
}


def test_they_are_all_there():
    assert {"quickstart", "bench_mini", *LLAMA} <= {path.stem for path in CONFIGS.glob("*.toml")}
    assert {path.stem for path in CONFIGS.glob("paper/*.toml")} == set(LLAMA)
    assert [path.name for path in sorted(CONFIGS.glob("ds/*.json"))] == [f"zero{stage}.json" for stage in range(4)]


@pytest.mark.parametrize("path", TOML, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_each_parses_and_has_no_setting_that_does_nothing(path):
    config = load_config(path, check_paths=False)
    assert not list(warnings(config))
    assert config.run.dir == f"runs/{path.relative_to(CONFIGS).with_suffix('')}"


@pytest.mark.parametrize("path", TOML, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_each_needs_no_file_that_a_clone_has_not(path):
    """But for ImageNet, which its user has to get."""
    overrides = ["data.source=digits"] if path.stem == "resnet50_imagenet" else []
    load_config(path, [*overrides, "data.validation=0.5"] if overrides else [])


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", ["quickstart", *LLAMA])
def test_each_goes_with_each_stage_that_its_precision_allows(name, stage):
    arguments = (CONFIGS / f"{name}.toml", (), CONFIGS / f"ds/zero{stage}.json", 2)
    if stage == 0 and name in LLAMA:
        with pytest.raises(ConfigError, match="contradicts train.precision = 'bf16'"):
            load_config(*arguments)
        arguments = (arguments[0], ["train.precision=fp32"], *arguments[2:])
    config = load_config(*arguments)
    assert config.zero_stage == stage
    assert "auto" not in str(config.deepspeed)


@pytest.mark.parametrize("name", LLAMA)
def test_the_papers_recipe(name):
    config = load_config(CONFIGS / "paper" / f"{name}.toml", world_size=8)
    values = by_key(config.to_dict())
    assert {key: values[key] for key in config.family.recipes["paper"]} == config.family.recipes["paper"]
    model, train, sparsity = config.model, config.train, config.sparsity
    assert (model.hidden_size, model.ffn_size, model.num_layers, model.num_attention_heads) == LLAMA[name]
    assert (model.vocab_size, model.max_seq_len, config.data.layout) == (32000, 256, "rows")
    assert (train.batch_size, train.lr, train.min_lr_ratio, train.weight_decay, train.grad_clip) == (
        512,
        1.5e-3,
        0.1,
        0,
        0,
    )
    assert train.steps == int(10_000 / sparsity.density) and train.warmup_steps == train.steps // 10
    assert (sparsity.drop, sparsity.temperature, sparsity.drop_fraction, sparsity.update_every) == (
        "soft_magnitude",
        3.0,
        0.5,
        50,
    )


@pytest.mark.parametrize("name", LLAMA)
def test_the_default_recipe_trains_the_papers_models_within_the_weights_it_may_have(name):
    """Of a full dense ensemble at most 0.7; all blocks in the trails, rates by width."""
    ours, paper = (load_config(CONFIGS / each / f"{name}.toml") for each in ("", "paper"))
    assert (ours.model, ours.data, ours.trails.count) == (paper.model, paper.data, paper.trails.count)
    values, recipe = by_key(ours.to_dict()), ours.family.recipes["default"]
    assert {key: values[key] for key in recipe} == recipe and ours.train.mup_base_hidden == 128
    full = replace(ours, trails=replace(ours.trails, fork="embedding"), sparsity=replace(ours.sparsity, density=1.0))
    assert ours.trunk_layers == 0
    assert 0.69 < count_parameters(ours)["stored"] / count_parameters(full)["stored"] <= 0.7


def test_bench_mini_is_the_setting_of_the_reference_figures():
    config = load_config(CONFIGS / "bench_mini.toml", check_paths=False)
    model, train = config.model, config.train
    assert (model.hidden_size, model.ffn_size, model.num_layers, model.num_attention_heads) == (128, 352, 6, 4)
    assert (model.vocab_size, model.max_seq_len, config.trails.count, config.trails.layers) == (4096, 128, 3, 4)
    assert (train.steps, train.batch_size, train.lr, train.warmup_steps, train.precision) == (
        1500,
        32,
        2e-3,
        150,
        "fp32",
    )
    assert (train.min_lr_ratio, train.weight_decay, train.grad_clip) == (0.1, 0.0, 0.0)
    assert config.run.eval_batches * train.batch_size == 1600  # windows
    assert (config.sparsity.density, config.sparsity.temperature, config.sparsity.update_every) == (0.9, 3.0, 50)
