"""Speed, memory and the loader are measured with pictures as with text; at tiny size, in the pool's rank."""

import json

import pytest

from benchmarks.loading import STEP, LoadingReport, measure_loading
from benchmarks.memory import measure_memory
from benchmarks.run import run_loading, run_speed
from benchmarks.timing import Spread
from nt_dist.errors import ConfigError
from nt_dist.families import make_config
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed
from tests.unit.resnet.small import small


def _config(width=8):
    return small(
        model={"width": width, "num_classes": 10},
        sparsity={"density": 0.5, "storage": "auto", "topology_shards": 4, "update_every": 5},
        train={"batch_size": 8, "micro_batch_size": 4, "steps": 100},
        data={"source": "digits", "padding": 1},
    )


def _measured(rank, world_size):
    mesh = init_mesh(_config())
    speed = run_speed(_config(), mesh, [0.5, 1.0], print, num_rounds=1, num_steps=1, cpu_time=True)
    memory = {density: measure_memory(_config(width=32), mesh, density) for density in (0.2, 1.0)}
    return speed, memory, run_loading(_config(), mesh, num_rounds=2, cpu_time=False, num_workers=1)


@pytest.fixture(scope="module")
def measured():
    return run_distributed(_measured, 1)[0]


def test_speed_is_of_pictures(measured):
    text, figures = measured[0]
    assert "4 pictures a micro-batch" in text and "steps of 8 pictures, by CPU time" in text
    assert "| pictures per second |" in text and "width 8, 1 + 3 × 2 blocks (preactivation)" in text
    assert figures["per_step"] == 8 and json.loads(json.dumps(figures))["density"]["0.5"]["ratio"][0] > 0


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_bytes_are_the_formulas(measured, density):
    report = measured[1][density]
    for kind in ("weights", "masters", "moments", "index"):
        assert report.measured[kind] == getattr(report.plan, kind), kind
    assert report.measured["gradients"] == pytest.approx(report.plan.gradients, rel=0.1)


def test_the_loader_is_measured_beside_the_step(measured):
    text, figures = measured[2]
    assert "decoded once, from digits" in text and "cut and scaled to 224" in text
    rates = json.loads(json.dumps(figures))["rates"]
    assert STEP in rates and all(len(each) == 2 and min(each) > 0 for each in rates.values())
    (ratio, _) = figures["threads_over_processes"]
    assert ratio > 0 and "1 threads read" in text and "times as many JPEGs in a second as 1 processes" in text


def test_a_ratio_is_of_one_round():
    report = LoadingReport({"loader": Spread([100.0, 30.0]), STEP: Spread([10.0, 10.0])})
    assert report.of_step["loader"].rounds == [10.0, 3.0]
    assert report.table().splitlines()[2] == "| loader | 65 (30-100) | 6.5 (3.0-10.0) |"


def test_text_has_no_loader_of_pictures():
    with pytest.raises(ConfigError, match=r"model\.family = 'llama'"):
        measure_loading(make_config({}), None, 1)
