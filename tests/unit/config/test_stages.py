"""How the density falls: when, to what, and what is trained at a step."""

import pytest

from nt_dist.config.rules import warnings
from nt_dist.config.stages import prunings, stage_at
from nt_dist.errors import ConfigError
from nt_dist.families import make_config

FALLING = {"density": 0.2, "start_density": 1.0, "density_stages": 4, "density_until": 0.8}


def falling(**sparsity):
    return make_config({"sparsity": FALLING | sparsity, "train": {"steps": 100, "warmup_steps": 10}})


def test_it_falls_as_a_cube_and_then_stays():
    config = falling()
    assert prunings(config) == [20, 40, 60, 80]
    by_hand = {0: 1.0, 20: 1.0, 21: 0.2 + 0.8 * 27 / 64, 41: 0.2 + 0.8 / 8, 61: 0.2 + 0.8 / 64, 80: 0.2 + 0.8 / 64}
    for step, density in by_hand.items():
        assert stage_at(config, step).sparsity.density == pytest.approx(density)
    for step in (81, 100, 101):
        assert stage_at(config, step) == config  # to the last digit


def test_a_stage_knows_the_others():
    config = falling()
    stage = stage_at(config, 21)
    assert prunings(stage) == prunings(config) and stage_at(stage, 61) == stage_at(config, 61)
    assert make_config(stage.to_dict()) == stage  # what a checkpoint says of itself


def test_without_a_start_it_stays():
    config = make_config({})
    assert prunings(config) == [] and stage_at(config, 7) is config


def test_a_few_steps_have_fewer_prunings():
    config = make_config({"sparsity": FALLING | {"update_every": 1}, "train": {"steps": 4, "warmup_steps": 1}})
    assert prunings(config) == [1, 2, 3]
    assert [stage_at(config, step).sparsity.density for step in (1, 4)] == [1.0, 0.2]


def test_a_density_that_rises_is_refused_and_what_changes_nothing_named():
    with pytest.raises(ConfigError, match=r"sparsity\.start_density = 0\.1 must be at least sparsity\.density = 0\.2"):
        falling(start_density=0.1)
    (found,) = warnings(make_config({"sparsity": {"density_until": 0.3}}))
    assert found == "sparsity.density_until = 0.3 is ignored: sparsity.start_density = 0.0"
