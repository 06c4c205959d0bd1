"""Which layouts are found, in which order, and what the estimates of time are made of."""

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nt_dist.config.load import parse_command_line
from nt_dist.config.settings import Parallel
from nt_dist.families import load_config, make_config
from nt_dist.model.counts import count_micro_batch
from nt_dist.model.flops import token_flops
from nt_dist.planning.gpus import COMPUTE_SHARE, GPUS, LAUNCH, LINK_SHARE, RESERVED
from nt_dist.planning.layouts import layouts, layouts_table, plan_layouts
from nt_dist.planning.local_layers import layer_parts
from nt_dist.planning.timing import _launches, step_time

ROOT = Path(__file__).parents[3]
H100 = GPUS["h100"]


def _config(world_size=4, precision="bf16", **train):
    return replace(
        make_config(
            {
                "model": {
                    "hidden_size": 256,
                    "ffn_size": 512,
                    "num_layers": 4,
                    "num_attention_heads": 4,
                    "vocab_size": 1024,
                    "max_seq_len": 64,
                },
                "trails": {"count": 2, "layers": 2},
                "sparsity": {"topology_shards": 4, "density": 0.5},
                "train": {
                    "batch_size": 16,
                    "micro_batch_size": 1,
                    "precision": precision,
                    "warmup_steps": 0,
                    "steps": 100,
                    **train,
                },
            }
        ),
        world_size=world_size,
    )


def test_layouts_are_all_that_the_rules_allow_and_each_once():
    found = [(each.parallel, each.zero_stage, each.train.micro_batch_size) for each in layouts(_config())]
    assert len(found) == len(set(found))
    degrees = {(each.tensor, each.pipe, each.trail) for each, _, _ in found}
    # 4 ranks; 3 is no divisor of them
    assert degrees == {
        (tensor, pipe, trail)
        for tensor in (1, 2, 4)
        for pipe in (1, 2, 4)
        for trail in (1, 2)
        if tensor * pipe * trail <= 4
    }
    assert {stage for each, stage, _ in found if each.pipe > 1} == {1}  # DeepSpeed's limit; bf16 begins at 1
    assert {stage for each, stage, _ in found if each.pipe == 1} == {1, 2, 3}
    assert {size for each, _, size in found if each == Parallel()} == {1, 2, 4}  # 16 sequences on 4 data ranks


def test_a_family_may_rule_layouts_out():
    config = load_config(str(ROOT / "configs/quickstart_images.toml"), [], None, check_paths=False)
    found = {
        (each.tensor, each.pipe) for each in (layout.parallel for layout in layouts(replace(config, world_size=4)))
    }
    assert found == {(1, 1)}


def test_what_fits_is_listed_fastest_first():
    config = _config()
    plans, looked_at = plan_layouts(config, H100)
    assert looked_at == len(list(layouts(config)))
    assert [plan.time.total for plan in plans] == sorted(plan.time.total for plan in plans)
    assert len({(plan.config.parallel, plan.config.zero_stage) for plan in plans}) == len(plans)
    room = sorted(plan.memory.peak for plan in plans)[len(plans) // 2]
    fewer, _ = plan_layouts(config, replace(H100, memory=room + RESERVED))
    assert 0 < len(fewer) < len(plans)
    assert all(plan.memory.peak <= room for plan in fewer)
    assert plan_layouts(config, replace(H100, memory=RESERVED))[0] == []
    lines = layouts_table(plans).splitlines()
    assert len(lines) == 2 + len(plans) and len({line.count("|") for line in lines}) == 1
    assert lines[0].count(" data ") == 2  # a degree, and what is sent over it


def test_products_are_those_of_the_tokens_flops():
    """One rank: the layers' work is what model/flops.py counts, padding aside."""
    config = _config(world_size=1)
    flops = token_flops(config)
    assert sum(layer.work for layer in layer_parts(config)) == flops.inference_dense
    tokens = config.train.batch_size * 64
    seconds = tokens * flops.training_dense / (H100.rate["bf16"] * COMPUTE_SHARE)
    assert step_time(config, H100).products == pytest.approx(seconds)
    again = replace(config, train=replace(config.train, activation_checkpointing=True))
    assert step_time(again, H100).products == pytest.approx(seconds * 4 / 3)


def test_trail_ranks_share_the_products_of_a_split_trunk():
    alone = step_time(_config(world_size=1, micro_batch_size=2), H100)
    config = _config(world_size=2, micro_batch_size=2)
    split, replicated = (
        step_time(replace(config, parallel=Parallel(trail=2, trunk=trunk)), H100) for trunk in ("split", "replicated")
    )
    assert split.products == pytest.approx(alone.products / 2)
    trunk = sum(layer.work for layer in layer_parts(config) if not layer.parts[0].spec.in_trail)
    share = trunk / sum(layer.work for layer in layer_parts(config))
    assert replicated.products == pytest.approx(alone.products * (1 + share) / 2)


def test_kernels_too_small_for_their_launches_make_the_gpu_wait():
    few, many = (step_time(_config(world_size=1, micro_batch_size=size), H100) for size in (16, 1))
    kernels = count_micro_batch(_config(world_size=1, micro_batch_size=1)).kernels
    assert few.idle + few.products + few.matrices == pytest.approx(LAUNCH * kernels)
    assert many.idle + many.products + many.matrices == pytest.approx(16 * LAUNCH * kernels)
    assert step_time(_config(world_size=1, micro_batch_size=16, compile=True), H100).idle == 0
    trails, stages = (replace(_config(), parallel=Parallel(**{axis: 2})) for axis in ("trail", "pipe"))
    assert LAUNCH < _launches(trails) < LAUNCH * kernels == _launches(stages)


def test_a_pipeline_waits_at_its_ends():
    config = replace(_config(world_size=4), parallel=Parallel(pipe=4))
    time = step_time(config, H100)
    assert time.bubble == pytest.approx(3 / (16 + 3))  # 16 micro-batches, 4 stages
    work = time.products + time.matrices + time.idle + time.exchange
    assert time.waiting / (time.waiting + work) == pytest.approx(time.bubble)
    assert step_time(_config(), H100).bubble == step_time(_config(), H100).waiting == 0
    assert time.sent["pipe"] > 0 == time.sent["data"]


def test_links_within_a_node_are_used_where_an_axis_lies_in_one():
    config = _config(world_size=8)
    inside, outside = step_time(config, H100), step_time(replace(config, world_size=16), H100)
    assert inside.sent["data"] == pytest.approx(outside.sent["data"] * (7 / 8) / (15 / 16), rel=0.01)
    assert inside.data > inside.sent["data"] / (H100.link * LINK_SHARE)
    assert outside.data - inside.data > 0.9 * outside.sent["data"] * (1 / H100.network - 1 / H100.link) / LINK_SHARE
    cut = replace(config, world_size=16, parallel=Parallel(tensor=2))  # a node has 4 of its 8 data ranks
    assert step_time(cut, H100).data > step_time(cut, replace(H100, network=H100.link)).data


def test_the_tool_prints_the_table():
    command = [sys.executable, "tools/plan.py", "--config", "configs/llama_60m.toml", "--gpus", "8", "--gpu", "a100"]
    done = subprocess.run([*command, "--top", "2"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "layouts fit" in done.stdout and "the first 2" in done.stdout
    *_, head, first, second, _, command = done.stdout.rstrip("\n").split("\n")
    assert head.split()[:4] == ["tensor", "pipe", "trail", "data"] and head.endswith("tokens/s  peak (GiB)")
    assert max(map(len, (head, first, second))) < 80
    tensor, pipe, trail, data, stage, size, *_ = first.split()
    assert int(tensor) * int(pipe) * int(trail) * int(data) == 8
    words = command.split()
    assert words[:4] == ["deepspeed", "--num_gpus", "8", "train.py"]
    path, ds_config, overrides = parse_command_line(words[4:])
    config = load_config(ROOT / path, overrides, ROOT / ds_config, world_size=8)
    assert (config.zero_stage, config.train.micro_batch_size) == (int(stage), int(size))
    assert (config.parallel.tensor, config.parallel.pipe, config.parallel.trail) == (int(tensor), int(pipe), int(trail))


def test_a_gpu_of_another_size_is_planned_for(monkeypatch, capsys):
    tool = runpy.run_path(str(ROOT / "tools" / "plan.py"))
    monkeypatch.chdir(ROOT)
    found = []
    for memory in ([], ["--gpu_memory", "12"]):
        monkeypatch.setattr("sys.argv", ["plan.py", "--config", "configs/llama_60m.toml", "--gpu", "rtx4090", *memory])
        assert tool["main"]() == 0
        found.append(capsys.readouterr().out)
    assert "fit in 18.4 GiB a GPU" in found[0] and "fit in 7.2 GiB a GPU" in found[1]
