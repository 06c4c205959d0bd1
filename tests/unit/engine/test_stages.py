"""Where a pipeline is cut: equal work, whole pieces, the fork with what lies behind it."""

import itertools

import pytest

from nt_dist.engine.stages import layer_work, stage_bounds
from nt_dist.families import make_config
from nt_dist.model.trails import layer_names


def config_of(pipe, count=3, layers=4, num_layers=8, vocabulary=512, fork="blocks", trail=1, trunk="auto"):
    sections = {
        "model": {"num_layers": num_layers, "vocab_size": vocabulary},
        "trails": {"count": count, "layers": layers, "fork": fork},
        "train": {"batch_size": 16, "micro_batch_size": 16},
        "parallel": {"pipe": pipe, "trail": trail, "trunk": trunk},
    }
    return make_config(sections, {"zero_optimization": {"stage": 1}}, world_size=pipe * trail)


def test_a_trail_block_counts_as_often_as_there_are_trails():
    work = dict(zip(layer_names(config_of(1)), layer_work(config_of(1)), strict=True))
    assert list(work)[:6] == ["embedding", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "fork"]
    assert work["blocks.7"] == pytest.approx(3 * work["blocks.0"])
    assert work["fork"] == 0 < work["embedding"] < work["output"]


def test_work_is_that_of_a_trail_rank():
    """Half of the trails; the whole trunk, or half of its tokens and what moving its weights costs."""
    whole, replicated, split = (
        dict(zip(layer_names(config), layer_work(config), strict=True))
        for config in (
            config_of(1, count=4),
            config_of(1, count=4, trail=2, trunk="replicated"),
            config_of(1, count=4, trail=2, trunk="split"),
        )
    )
    for name in ("blocks.7", "output"):
        assert split[name] == replicated[name] == pytest.approx(whole[name] / 2)
    assert replicated["blocks.0"] == whole["blocks.0"]
    assert 0.5 < split["blocks.0"] / whole["blocks.0"] < 0.6
    assert split["embedding"] == whole["embedding"]


@pytest.mark.parametrize("pipe", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("vocabulary", [64, 32000])
@pytest.mark.parametrize(("layers", "fork"), [(4, "blocks"), (8, "blocks"), (8, "embedding")])
def test_no_other_cut_has_a_smaller_largest_stage(pipe, vocabulary, layers, fork):
    config = config_of(pipe, layers=layers, vocabulary=vocabulary, fork=fork)
    names, work, bounds = layer_names(config), layer_work(config), stage_bounds(config)

    def allowed(bounds):
        stages = [names[start:stop] for start, stop in itertools.pairwise(bounds)]
        return all(any("." in name or name == "output" for name in each) and each[-1] != "fork" for each in stages)

    def largest(bounds):
        return max(sum(work[start:stop]) for start, stop in itertools.pairwise(bounds))

    assert len(bounds) == pipe + 1 and allowed(bounds)
    others = ((0, *inner, len(names)) for inner in itertools.combinations(range(1, len(names)), pipe - 1))
    assert largest(bounds) == pytest.approx(min(largest(other) for other in others if allowed(other)))


def test_the_fork_begins_a_stage_where_the_cut_falls_there():
    config = config_of(2, count=2, layers=2, num_layers=6, vocabulary=64)
    start = stage_bounds(config)[1]
    assert layer_names(config)[start] == "fork"
