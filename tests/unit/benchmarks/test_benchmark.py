"""The benchmarks at tiny size: they measure what they say, and the formulas hold. Trainers live in the pool's rank."""

import functools
import json
from typing import ClassVar

import pytest
import torch

from benchmarks import speed as speed_module
from benchmarks.allocations import Allocations
from benchmarks.memory import KINDS, measure_memory, memory_table
from benchmarks.run import run_memory, run_saving, run_speed, run_trunk
from benchmarks.setup import at_density, build_bench, check
from benchmarks.speed import measure_speed
from benchmarks.timing import Spread
from benchmarks.trunk import measure_trunk
from nt_dist.errors import ConfigError
from nt_dist.families import make_config
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed

BF16 = "bf16"


def _config(hidden=16, world_size=1, update_every=10, **train):
    return make_config(
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
            "train": {
                "recipe": "paper",
                "steps": 1000,
                "batch_size": 4,
                "micro_batch_size": 2,
                "warmup_steps": 0,
                **train,
            },
        },
        None,
        world_size,
    )


def _on_rank(work):
    return run_distributed(work, 1)[0]


def test_allocations_are_counted_from_entering_on():
    with Allocations(torch.device("cpu")):
        before = torch.zeros(1000)  # the profiler knows its size, and reports its release whenever that is
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


def _measured(rank, world_size):
    config = _config(hidden=48, batch_size=2)
    mesh = init_mesh(config)
    reports = {density: measure_memory(config, mesh, density) for density in (0.2, 0.9, 1.0)}
    return reports | {BF16: measure_memory(_config(hidden=48, batch_size=2, precision=BF16), mesh, 0.5)}


@pytest.fixture(scope="module")
def reports():
    return _on_rank(_measured)


@pytest.mark.parametrize("case", [0.2, 0.9, 1.0, BF16])
def test_measured_bytes_are_the_formulas(reports, case):
    report = reports[case]
    for kind in ("weights", "masters", "moments", "index"):
        assert report.measured[kind] == getattr(report.plan, kind), kind
    for kind in ("gradients", "update"):
        assert report.measured[kind] == pytest.approx(getattr(report.plan, kind), rel=0.1), kind
    assert (report.measured["update"] > 0) == (case != 1.0)
    assert (report.measured["masters"] > 0) == (case == BF16)
    assert report.step_peak >= sum(report.measured.values()) - report.measured["update"]
    assert memory_table([report]).splitlines()[-1].startswith(f"| {report.density:g} | {report.stored:,} |")


def test_what_is_stored_follows_the_density(reports):
    for kind in ("gradients", "moments"):
        assert reports[0.2].measured[kind] <= 0.22 * reports[1.0].measured[kind], kind


class _KnownClock:
    """Does the work, and says that it took what each kind of work takes in this test."""

    SECONDS: ClassVar = {"plain": 2.0, "step": 4.0, "step_before_update": 5.0, "update": 3.0}
    turns: ClassVar = []

    def __init__(self, synchronize, now):
        self.turns.clear()

    def seconds(self, work, times):
        name = work.__name__ if hasattr(work, "__self__") else "plain"
        self.turns.append(name)
        work()
        return times * self.SECONDS[name]


def _timed(rank, world_size):
    config, clock = _config(), speed_module.Clock
    mesh = init_mesh(config)
    speed_module.Clock = _KnownClock
    try:
        return measure_speed(config, mesh, [0.5, 1.0], num_rounds=3, num_steps=2), _KnownClock.turns
    finally:
        speed_module.Clock = clock


def test_contenders_take_turns_and_ratios_are_of_one_round():
    report, turns = _on_rank(_timed)
    assert (report.unit, report.per_step) == ("tokens", 4 * 8)
    assert report.plain.rounds == [16.0] * 3
    assert report.trainer[0.5].rounds == report.trainer[1.0].rounds == [8.0] * 3
    assert report.ratio[0.5].rounds == [0.5] * 3
    assert report.update_steps == {0.5: Spread([1.0] * 3)}  # (5 + 3) / 4 - 1; a dense model has no updates
    assert report.update_share[0.5].rounds == [0.1] * 3  # every 10 steps
    assert report.of_single[1.0].rounds == [2.0] * 3
    rounds = [turns[start : start + 7] for start in range(0, 21, 7)]
    plain = [[number for number, name in enumerate(each) if name == "plain"] for each in rounds]
    assert plain == [[0, 1], [0, 3], [2, 3]]  # another contender is first in each round
    assert all(each[4:] == ["step", "step_before_update", "update"] for each in rounds)
    table = report.table().splitlines()
    assert "0.500 (0.500-0.500)" in table[3] and "10.00%" in table[3] and "| - | - | 2.000 (" in table[4]


def _run_both(rank, world_size):
    mesh = init_mesh(_config())
    speed = run_speed(_config(precision=BF16), mesh, [0.5], print, num_rounds=1, num_steps=1, cpu_time=False)
    return speed, run_memory(_config(), mesh, [0.5], print)


def test_both_end_in_text_and_json():
    speed, memory = _on_rank(_run_both)
    text, figures = speed
    assert "bf16" in text and "16 tokens a micro-batch" in text and "| density 0.5 |" in text
    assert json.loads(json.dumps(figures))["density"]["0.5"]["ratio"][0] > 0
    text, figures = memory
    assert "| 0.5 |" in text and set(json.loads(json.dumps(figures))[0]["measured"]) == set(KINDS)


def _trunk_config(**train):
    sections = _config(**train).to_dict()
    sections["trails"]["count"], sections["parallel"]["trail"] = 4, 2
    return make_config(sections, None, 2)


def _run_trunk(rank, world_size):
    return run_trunk(_trunk_config(), print, num_rounds=2, num_steps=1)


def test_a_split_trunk_is_measured_against_a_replicated_one():
    text, figures = run_distributed(_run_trunk, 2)[0]
    assert "2 trail ranks, 2 micro-batches a step" in text and text.splitlines()[-1].startswith("| split |")
    of = json.loads(json.dumps(figures))["trunk"]
    assert [len(each[kind]) for each in of.values() for kind in ("seconds", "cpu_seconds")] == [2] * 4
    assert set(of["split"]["payload"]) - {"all_reduce"} == {"all_gather", "reduce_scatter"}
    assert set(of["replicated"]["payload"]) - {"all_reduce"} == {"all_gather", "broadcast"}  # the losses are gathered
    assert of["split"]["activations"] < of["replicated"]["activations"]
    assert of["split"]["step_peak"] < of["replicated"]["step_peak"]


@pytest.mark.parametrize("config", [_config(), _trunk_config(micro_batch_size=1)], ids=["one rank", "one sequence"])
def test_a_trunk_that_cannot_be_split_is_refused(config):
    with pytest.raises(ConfigError, match=r"parallel\.trail"):
        measure_trunk(config, num_rounds=1, num_steps=1)


def _checksums(rank, world_size):
    bench = build_bench(at_density(_config(), 0.5), init_mesh(_config()))
    found = [bench.topology.check("the start")]
    bench.step()
    found.append(bench.topology.check("a step"))
    bench.step_before_update()
    bench.update()
    collected = [weight.dense_gradient for weight in bench.topology.sparse.values()]
    return [*found, bench.topology.check("the update")], collected


def test_the_update_that_is_timed_is_one():
    (start, after_step, after_update), collected = _on_rank(_checksums)
    assert start == after_step != after_update
    assert all(gradient is None for gradient in collected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (functools.partial(_config, world_size=2), "one rank, not on 2"),
        (functools.partial(_config, update_every=0), "update_every = 0"),
        (
            functools.partial(_config, update_every=1000),
            r"train\.steps = 1000 must be greater than sparsity\.update_every = 1000",
        ),
    ],
    ids=["ranks", "static", "short"],
)
def test_what_cannot_be_benchmarked_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check(config())


def test_a_density_out_of_range_is_refused_with_its_key():
    with pytest.raises(ConfigError, match=r"sparsity\.density = 1\.5"):
        at_density(_config(), 1.5)


def _saving_in(folder, rank, world_size):
    config = _config()
    return run_saving(config, init_mesh(config), folder, num_rounds=2, num_steps=1)


def test_a_save_is_timed_both_ways_and_nothing_stays(tmp_path):
    text, figures = _on_rank(functools.partial(_saving_in, tmp_path))
    assert "beside: standing still" in text and figures["size"] > 10_000
    assert all(len(figures[name]) == 2 for name in ("synchronous", "copy", "commit", "slower", "steps_beside"))
    assert min(figures["synchronous"] + figures["copy"] + figures["commit"]) > 0
    assert list(tmp_path.iterdir()) == []
