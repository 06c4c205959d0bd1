"""Both benchmarks at tiny size: they measure what they say, and the formulas hold."""

import gc
import json

import pytest
import torch

from nt_dist.benchmark import speed as speed_module
from nt_dist.benchmark.allocations import Allocations
from nt_dist.benchmark.memory import KINDS, measure_memory, memory_table
from nt_dist.benchmark.run import run_memory, run_speed
from nt_dist.benchmark.setup import at_density, build_bench
from nt_dist.benchmark.speed import Spread, measure_speed
from nt_dist.config import Config
from nt_dist.errors import ConfigError
from nt_dist.parallel.mesh import close, init_mesh


def _config(hidden=16, world_size=1, stage=None, **train):
    update_every = train.pop("update_every", 10)
    return Config.from_dict(
        {
            "model": {
                "hidden_size": hidden,
                "ffn_size": 2 * hidden,
                "num_layers": 2,
                "num_attention_heads": 2,
                "vocab_size": 8 * hidden,
                "max_seq_len": 8,
            },
            "trails": {"count": 3, "layers": 1},
            "sparsity": {"topology_shards": 4, "update_every": update_every},
            "train": {"steps": 1000, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 0, **train},
        },
        None if stage is None else {"zero_optimization": {"stage": stage}},
        world_size,
    )


@pytest.fixture(scope="module")
def mesh():
    yield init_mesh(_config())
    close()


def test_allocations_are_counted_from_entering_on():
    before = torch.zeros(1000)
    with Allocations(torch.device("cpu")) as allocations:
        allocations.mark("start")
        kept = torch.zeros(250_000)
        allocations.mark("kept")
        (kept + 1).sum()
        del before
        allocations.mark("end")
    assert allocations.at("start") == 0
    assert allocations.at("kept") == allocations.at("end") == kept.nbytes  # what was there before counts for nothing
    assert kept.nbytes * 2 <= allocations.peak("kept", "end") < kept.nbytes * 2.1
    assert allocations.peak("start", "kept") == kept.nbytes


@pytest.mark.parametrize("density", [0.2, 0.9, 1.0])
def test_measured_bytes_are_the_formulas(mesh, density):
    report = measure_memory(_config(hidden=64), mesh, density)
    for kind in ("weights", "masters", "moments", "index"):
        assert report.measured[kind] == getattr(report.plan, kind), kind
    for kind in ("gradients", "update"):
        assert report.measured[kind] == pytest.approx(getattr(report.plan, kind), rel=0.1), kind
    assert (report.measured["update"] > 0) == (density < 1)
    assert report.step_peak >= sum(report.measured.values()) - report.measured["update"]
    line = memory_table([report]).splitlines()[-1]
    assert line.startswith(f"| {density:g} | {report.stored:,} |")


def test_sparse_state_follows_density(mesh):
    dense, sparse = (measure_memory(_config(hidden=64), mesh, density) for density in (1.0, 0.2))
    for kind in ("gradients", "moments"):
        assert sparse.measured[kind] <= 0.22 * dense.measured[kind], kind


def test_bf16_and_zero_hold_masters(mesh):
    report = measure_memory(_config(hidden=64, precision="bf16"), mesh, 0.5)
    assert report.plan.stage == 1
    assert (
        report.measured["masters"] == report.plan.masters == 2 * report.plan.weights == 2 * report.measured["weights"]
    )
    assert report.measured["gradients"] == pytest.approx(report.plan.gradients, rel=0.1)


def test_speed_takes_turns_and_counts_tokens(mesh, monkeypatch):
    """With a clock that says what each contender costs, the report is known."""
    turns = []

    class Clock:
        def __init__(self, synchronize):
            pass

        def seconds(self, work, times):
            name = work.__self__.__class__.__name__ if hasattr(work, "__self__") else "plain"
            name = getattr(work, "__name__", name)
            turns.append(name)
            work()
            return times * {"<lambda>": 2.0, "step": 4.0, "step_before_update": 5.0, "update": 3.0}[name]

    monkeypatch.setattr(speed_module, "_Clock", Clock)
    report = measure_speed(_config(), mesh, [0.5, 1.0], num_rounds=3, num_steps=2)
    assert report.tokens_per_step == 4 * 8
    assert report.plain.rounds == [16.0] * 3
    assert report.trainer[0.5].rounds == report.trainer[1.0].rounds == [8.0] * 3
    assert report.ratio[0.5].rounds == [0.5] * 3
    assert report.update_steps == {0.5: Spread([1.0] * 3)}  # (5 + 3) / 4 - 1; a dense model has no updates
    assert report.update_share[0.5].rounds == [0.1] * 3  # every 10 steps
    starts = [turns[round * 6] for round in range(3)]
    assert starts == ["<lambda>", "step", "step"]  # another contender first in each round
    table = report.table().splitlines()
    assert "0.500 (0.500-0.500)" in table[3] and "10.00%" in table[3] and "| - | - |" in table[4]


def test_real_runs_end_in_text_and_json():
    text, figures = run_speed(_config(precision="bf16"), [0.5], num_rounds=1, num_steps=1, say=lambda line: None)
    assert "bf16" in text and "16 tokens a micro-batch" in text and "| density 0.5 |" in text
    assert json.loads(json.dumps(figures))["density"]["0.5"]["ratio"][0] > 0
    text, figures = run_memory(_config(), [0.5], say=lambda line: None)
    assert "| 0.5 |" in text and set(json.loads(json.dumps(figures))[0]["measured"]) == set(KINDS)


def test_an_update_of_the_bench_changes_the_topology(mesh):
    bench = build_bench(at_density(_config(), 0.5), mesh)
    before = bench.topology.check("the start")
    bench.step()
    assert bench.topology.check("a step") == before
    bench.step_before_update()
    bench.update()
    assert bench.topology.check("the update") != before
    assert all(weight.dense_gradient is None for weight in bench.topology.weights.values())
    gc.collect()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: _config(world_size=2), "one rank, not on 2"),
        (lambda: _config(update_every=0), "update_every = 0"),
        (lambda: _config(update_every=1000), r"train\.steps = 1000 must be greater than sparsity\.update_every = 1000"),
    ],
    ids=["ranks", "static", "short"],
)
def test_what_cannot_be_benchmarked_is_refused(mesh, config, message):
    with pytest.raises(ConfigError, match=message):
        measure_memory(config(), mesh, 0.5)


def test_a_density_out_of_range_is_refused_with_its_key():
    with pytest.raises(ConfigError, match=r"sparsity\.density = 1\.5"):
        at_density(_config(), 1.5)
