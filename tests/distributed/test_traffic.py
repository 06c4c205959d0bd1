"""Bytes counted at torch.distributed's collectives on two ranks are those of the planner's formulas, to the byte."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from benchmarks.setup import build_bench, random_batches
from benchmarks.traffic import counted_traffic
from nt_dist.config.settings import Parallel
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.families import make_config
from nt_dist.model.chunks import LOGITS_AT_ONCE
from nt_dist.model.trails import build_model
from nt_dist.parallel.mesh import init_mesh
from nt_dist.planning.communication import sent_bytes, step_payload, update_payload
from nt_dist.planning.local_layers import local_parts, stage_layers
from nt_dist.testing import run_distributed

RANKS = 2


def _config(precision="fp32", stage=0, zero=(), trails=None, sparsity=None, parallel=None, **train):
    return make_config(
        {
            "model": {
                "hidden_size": 16,
                "ffn_size": 24,
                "num_layers": 3,
                "num_attention_heads": 4,
                "vocab_size": 61,
                "max_seq_len": 8,
            },
            "trails": {"count": 2, "layers": 2, **(trails or {})},
            "sparsity": {"density": 0.3, "topology_shards": 4, "update_every": 10, **(sparsity or {})},
            "parallel": parallel or {},
            "train": {
                "recipe": "paper",
                "steps": 100,
                "batch_size": 2 * RANKS * 2,
                "micro_batch_size": 2,
                "precision": precision,
                "warmup_steps": 0,
                **train,
            },
        },
        {"zero_optimization": {"stage": stage, "reduce_bucket_size": 2000, **dict(zero)}},
        RANKS,
    )


NO_CACHE = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 2000,
    "stage3_max_live_parameters": 0,
    "stage3_prefetch_bucket_size": 0,
}
DATA = {
    "ZeRO 0": _config(),
    "ZeRO 0, no accumulation": _config(batch_size=4),
    "ZeRO 0, joint": _config(trails={"joint": 0.5}),
    "ZeRO 0, masked": _config(sparsity={"storage": "masked"}),
    "ZeRO 0, random regrowth": _config(sparsity={"grow": "random", "new_moments": "zero"}),
    "ZeRO 1": _config(stage=1, grad_clip=1.0),
    "ZeRO 1, a rate for each group": _config(stage=1, lr_embedding=4.0, lr_output=0.5, lr_trunk=2.0),
    "ZeRO 2": _config(stage=2),
    "ZeRO 3, a rate for each group": _config(stage=3, lr_embedding=4.0, lr_output=0.5, lr_trunk=2.0),
    "bf16, ZeRO 1, a rate for each group": _config("bf16", 1, lr_embedding=4.0, lr_output=0.5, lr_trunk=2.0),
    "ZeRO 3": _config(stage=3),
    "ZeRO 3, some kept gathered": _config(stage=3, zero={"stage3_param_persistence_threshold": 184}),
    "bf16, ZeRO 1": _config("bf16", 1),
    "bf16, ZeRO 2": _config("bf16", 2),
    "bf16, ZeRO 3, gathered twice": _config("bf16", 3, zero=NO_CACHE),
}


def _count_data(rank, world_size, config):
    with counted_traffic() as traffic:
        mesh = init_mesh(config)
        bench = build_bench(config, mesh)
        bench.step()  # stage 3 learns in the first which weights are needed when
        bench.step()
        traffic.start(mesh)
        bench.step()
        ordinary = traffic.stop()
        traffic.start(mesh)
        bench.step_before_update()
        bench.update()
        return ordinary, traffic.stop()


@pytest.mark.parametrize("name", DATA)
def test_data_parallel_bytes_are_the_formulas(name):
    config = DATA[name]
    step, update = step_payload(config), update_payload(config)
    with_update = {key: step.get(key, 0) + update.get(key, 0) for key in {*step, *update}}
    for ordinary, of_update_step in run_distributed(_count_data, RANKS, config):
        assert ordinary == step
        assert of_update_step == with_update
    assert all(axis == "data" for axis, _ in step) and update


def _count_passes(rank, world_size, config, at_once):
    """One micro-batch, forward and backward, of the part of the model that this rank holds."""
    mesh = init_mesh(config)
    with counted_traffic() as traffic:
        place = mesh.place
        model = build_model(config, place)
        place.join_gradients(model)
        tokens, targets = torch.randint(61, (2, 2, 8), generator=torch.Generator().manual_seed(0))
        traffic.start(mesh)
        weights = torch.ones(targets.shape)
        with mock.patch.dict(LOGITS_AT_ONCE, {"cpu": at_once}):
            model(tokens, targets, weights).sum().backward()
        return traffic.stop(), sum(parameter.numel() for parameter in model.parameters())


def _cut(axis, checkpointing=False, fork="blocks", trunk="auto", joint="", smoothing=0.0, sequence=False):
    trails = {"fork": fork, **({"joint": 0.5, "joint_mean": joint} if joint else {})}
    config = _config(trails=trails, batch_size=4, activation_checkpointing=checkpointing, label_smoothing=smoothing)
    degrees = replace(Parallel(trunk=trunk, sequence_parallel=sequence), **{axis: 2})
    return replace(config, parallel=degrees, train=replace(config.train, batch_size=2))


MODEL_AXES = {
    "tensor": _cut("tensor"),
    "tensor, computed again": _cut("tensor", checkpointing=True),
    "tensor, fork before the embedding": _cut("tensor", fork="embedding"),
    "tensor, sequence": _cut("tensor", sequence=True),
    "tensor, sequence, computed again": _cut("tensor", checkpointing=True, sequence=True),
    "trail, split trunk": _cut("trail", trunk="split"),
    "trail, split trunk, computed again": _cut("trail", checkpointing=True, trunk="split"),
    "trail, replicated trunk": _cut("trail", trunk="replicated"),
    "tensor, chunks": _cut("tensor"),
    "tensor, joint logits": _cut("tensor", joint="logits"),
    "tensor, joint probabilities": _cut("tensor", joint="probabilities"),
    "tensor, smoothed labels": _cut("tensor", smoothing=0.1),
    "tensor, joint probabilities, smoothed labels": _cut("tensor", joint="probabilities", smoothing=0.1),
    "trail, joint logits": _cut("trail", joint="logits"),
    "trail, joint logits, chunks": _cut("trail", joint="logits"),
    "trail, joint probabilities": _cut("trail", joint="probabilities"),
}


@pytest.mark.parametrize("name", MODEL_AXES)
def test_tensor_and_trail_bytes_are_the_formulas(name, monkeypatch):
    config, at_once = MODEL_AXES[name], 500 if "chunks" in name else 1 << 20
    monkeypatch.setitem(LOGITS_AT_ONCE, "cuda", at_once)
    assert config.data_degree == 1 and config.accumulation_steps == 1
    stored = sum(part.stored for part in local_parts(stage_layers(config)[0]))
    counts = run_distributed(_count_passes, RANKS, config, at_once)
    for counted, _ in counts:
        assert counted == step_payload(config) != {}
    assert max(values for _, values in counts) == stored


UPDATE_SCALARS = 8 + 16 + 4  # replaced slots and the model's checksum, over the axes of the model; whether all agree


@pytest.mark.parametrize("trunk", ["split", "replicated"])
def test_an_updates_bytes_over_the_trail_axis_are_the_formulas(trunk):
    config = _config(parallel={"trail": 2, "trunk": trunk})
    update = update_payload(config)
    assert ("trail", "broadcast") in update
    for ordinary, of_update_step in run_distributed(_count_data, RANKS, config):
        added = {key: each - ordinary.get(key, 0) for key, each in of_update_step.items()}
        added["trail", "all_reduce"] -= UPDATE_SCALARS
        assert {key: each for key, each in added.items() if each} == update


def _count_pipe(rank, world_size, config):
    with counted_traffic() as traffic:
        mesh = init_mesh(config)
        model = build_mesh_model(config, mesh)
        engine = build_engine(config, model, mesh)
        batches = random_batches(config, mesh.device)
        train_step(engine, config, mesh, batches, 1)  # the first one sends the shapes
        traffic.start(mesh)
        train_step(engine, config, mesh, batches, 2)
        return {key: each for key, each in traffic.stop().items() if key[1] == "send"}


@pytest.mark.parametrize("layers", [1, 2], ids=["one block in a trail", "two"])
def test_pipe_bytes_are_the_formulas(layers):
    config = _config(trails={"layers": layers}, parallel={"pipe": 2})
    counts = run_distributed(_count_pipe, RANKS, config)
    for stage, counted in enumerate(counts):
        assert counted == step_payload(config, stage)


def test_what_a_ring_sends():
    assert sent_bytes("all_reduce", 100, 4) == 150
    assert sent_bytes("all_gather", 100, 4) == sent_bytes("reduce_scatter", 100, 4) == 75
    assert sent_bytes("broadcast", 100, 4) == sent_bytes("reduce", 100, 4) == 100
    assert sent_bytes("send", 100, 1) == 100 and sent_bytes("all_reduce", 100, 1) == 0
