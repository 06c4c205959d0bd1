"""A recipe says what a config leaves out; what stands in the file or on the command line wins."""

import pytest

from nt_dist.errors import ConfigError
from nt_dist.families import FAMILIES, load_config

PICTURES = {"model": {"family": "resnet"}, "data": {"source": "digits"}, "train": {"micro_batch_size": 32}}


def with_train(sections=PICTURES, words=(), **train):
    return load_config({**sections, "train": {**sections.get("train", {}), **train}}, words)


def test_each_family_has_its_own_and_the_default_one_is_taken():
    train = with_train().train
    assert (train.optimizer, train.lr, train.nesterov, train.objective) == ("sgd", 0.1, True, "sum")
    assert load_config({}).train.optimizer == "adamw"
    paper = with_train(recipe="paper")
    assert (paper.train.lr_schedule, paper.train.objective, paper.sparsity.drop) == ("steps", "mean", "magnitude")


def test_the_file_and_the_command_line_win():
    assert with_train(lr=0.5, recipe="paper").train.lr == 0.5
    config = with_train(lr=0.5, words=["train.lr=0.25", "train.recipe=paper", "train.nesterov=false"])
    assert (config.train.lr, config.train.nesterov, config.train.lr_schedule) == (0.25, False, "steps")


@pytest.mark.parametrize("recipe", ["papier", 3, ["paper"]])
def test_one_that_there_is_not_is_refused_by_name(recipe):
    with pytest.raises(ConfigError, match=r"train\.recipe = .* must be"):
        with_train(recipe=recipe)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_what_a_config_becomes_reads_back_as_the_same(family):
    config = load_config({"model": {"family": family.name}, "train": {"recipe": "paper", "micro_batch_size": 32}})
    assert load_config(config.to_dict()) == config


@pytest.mark.parametrize("beside", [".lock", "manifest.json"])
def test_what_a_kept_config_lacks_was_no_setting_when_it_was_written(tmp_path, beside):
    file = tmp_path / "config.toml"
    file.write_text("[sparsity]\ndensity = 0.5\n")
    assert load_config(file).trails.joint == load_config(file).family.recipes["default"]["trails.joint"] > 0
    (tmp_path / beside).touch()
    kept = load_config(file)
    assert (kept.trails.joint, kept.sparsity.exempt, kept.train.lr_embedding) == (0.0, (), 1.0)


def test_one_trail_has_no_loss_of_an_ensemble():
    assert load_config({}).trails.trained_mean == "logits"
    assert load_config({"trails": {"count": 1}}).trails.trained_mean == ""
