"""What is checked on a GPU, at tiny size on the CPU; and that the driver fails where something does not hold."""

import math
import re

import pytest

from benchmarks import gpu
from nt_dist.testing import run_distributed
from tools import check_gpu


def _found(rank, world_size):
    return {name: gpu.CHECKS[name](True) for name in ("parity", "llama_130m", "profile", "decoding")}


@pytest.fixture(scope="module")
def found():
    return run_distributed(_found, 1)[0]


def test_every_precision_and_stage_trains_as_the_cpu_does(found):
    pair = {"cpu": found["parity"], "here": found["parity"]}
    assert check_gpu.problems_of("parity", pair) == []
    first, *_, last = check_gpu.table("parity", pair)[2:]
    assert re.fullmatch(r"\| fp32, ZeRO 0 \| 0 \| (\d+) of \1 \|", first) and "bf16" in last
    case = found["parity"][check_gpu.REFERENCE]
    assert len(case["losses"]) == gpu.STEPS and case["losses"][-1] < case["losses"][0]
    assert all(case["start"][name] != case["end"][name] for name in case["start"])


@pytest.mark.parametrize("wrong", [1.001, math.nan])
def test_losses_that_are_not_the_cpus_are_a_problem(found, wrong):
    case = found["parity"][check_gpu.REFERENCE]
    other = case | {"losses": [*case["losses"][:-1], case["losses"][-1] * wrong]}
    pair = {"cpu": found["parity"], "here": {check_gpu.REFERENCE: other}}
    (problem,) = check_gpu.problems_of("parity", pair)
    assert problem.startswith("fp32, ZeRO 0: losses differ by ") and problem.endswith("at most 0.0001")


def test_a_topology_that_begins_otherwise_is_a_problem(found):
    case = found["parity"][check_gpu.REFERENCE]
    pair = {"cpu": found["parity"], "here": {check_gpu.REFERENCE: case | {"start": case["end"]}}}
    assert check_gpu.problems_of("parity", pair) == ["fp32, ZeRO 0: the first topology is not the CPU's"]


def test_rates_memory_kernels_and_decoding_are_reported(found):
    speed = found["llama_130m"]
    assert set(speed) == {*gpu.CONTENDERS, "plain layers"}
    assert all(each["tokens_per_second"] > 0 for each in speed.values())
    assert speed["single dense"]["planned_bytes"] < speed["NeuroTrails 0.9"]["planned_bytes"]
    assert speed["single dense"]["update_steps"] is None and speed["NeuroTrails 0.9"]["update_steps"] is not None
    assert len(check_gpu.table("llama_130m", speed)) == 2 + len(speed)
    assert found["profile"]["kernels_per_micro_batch"] > 100 and len(found["profile"]["milliseconds"]) == 12
    assert all(each["tokens_per_second"] > 0 for each in found["decoding"].values())


def test_a_check_that_fails_leaves_the_others_alone(monkeypatch, capsys, tmp_path):
    def run(command, environment):
        if "decoding" in command:
            raise check_gpu.CheckError("out of memory")
        return '{"kernels_per_micro_batch": 3}'

    monkeypatch.setattr(check_gpu, "_run", run)
    monkeypatch.setattr("sys.argv", ["check_gpu.py", "--only", "decoding,profile", "--json", str(tmp_path / "a.json")])
    assert check_gpu.main() == 1
    said = capsys.readouterr().out
    assert "## decoding: FAILED" in said and "out of memory" in said and "kernels_per_micro_batch: 3" in said
    assert said.endswith("failed: decoding\n") and "kernels" in (tmp_path / "a.json").read_text()
