"""The planner's memory of whole steps, against what the allocator counts on every rank of a pipeline and of trails."""

import contextlib
import gc
import math
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from benchmarks.allocations import Allocations
from benchmarks.setup import random_batches
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.families import make_config
from nt_dist.parallel.mesh import init_mesh
from nt_dist.planning.memory import rank_memory
from nt_dist.testing import run_distributed
from nt_dist.training.topology_updates import TopologyUpdater

UPDATE_STEP = 10


def _config(world_size=2, stage=0, precision="fp32", checkpointing=False, vocabulary=128, **parallel):
    """Two trunk blocks and two of two trails; four micro-batches a step, whose activations outweigh the weights."""
    sections = {
        "model": {
            "hidden_size": 48,
            "ffn_size": 96,
            "num_layers": 4,
            "num_attention_heads": 4,
            "vocab_size": vocabulary,
            "max_seq_len": 64,
        },
        "trails": {"count": 2, "layers": 2},
        "sparsity": {"density": 0.5, "topology_shards": 4, "update_every": UPDATE_STEP},
        "train": {
            "recipe": "paper",
            "steps": 1000,
            "micro_batch_size": 4,
            "precision": precision,
            "warmup_steps": 0,
            "activation_checkpointing": checkpointing,
        },
        "parallel": parallel,
    }
    data = world_size // math.prod(parallel.get(axis, 1) for axis in ("pipe", "trail", "tensor"))
    sections["train"]["batch_size"] = 4 * 4 * data
    return make_config(sections, {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1000}}, world_size)


def _as_if_gathered(whole, share, group):
    """What other ranks have does not matter for sizes."""
    whole.unflatten(0, (-1, len(share))).copy_(share)


def _as_if_scattered(share, whole, group):
    share.copy_(whole[: len(share)])


def _count(rank, world_size, config):
    """Return the stage of this rank and the most bytes alive in an ordinary step and in one with an update."""
    with contextlib.ExitStack() as stack:
        allocations = stack.enter_context(Allocations(torch.device("cpu")))
        if config.cuts_sequence:  # gloo frees copies of its own in threads that the profiler does not see
            stack.enter_context(mock.patch.object(dist, "all_gather_into_tensor", _as_if_gathered))
            stack.enter_context(mock.patch.object(dist, "reduce_scatter_tensor", _as_if_scattered))
        mesh = init_mesh(config)
        model = build_mesh_model(config, mesh)
        engine = build_engine(config, model, mesh)
        state = optimizer_state(engine)
        state.create()
        updater = TopologyUpdater(config, mesh, model, state, engine)
        batches = random_batches(config, mesh.device)
        train_step(engine, config, mesh, batches, 1)
        gc.collect()
        allocations.mark("ordinary")
        train_step(engine, config, mesh, batches, 2)
        gc.collect()
        allocations.mark("update")
        train_step(engine, config, mesh, batches, UPDATE_STEP, updater.collects_at(UPDATE_STEP))
        updater.update(UPDATE_STEP)
        allocations.mark("updated")
    return mesh.pipe.rank, allocations.peak("ordinary", "update"), allocations.peak("update", "updated")


LAYOUTS = {
    "pipe 2": _config(pipe=2),
    "pipe 2, computed again": _config(pipe=2, checkpointing=True),
    "pipe 2 x data 2, ZeRO 1, bf16": _config(4, 1, "bf16", pipe=2),
    "tensor 2, sequence": _config(tensor=2, sequence_parallel=True, vocabulary=16),
    "tensor 2, sequence, computed again": _config(tensor=2, sequence_parallel=True, checkpointing=True),
    "trail 2, split trunk": _config(trail=2, trunk="split"),
    "trail 2, replicated trunk": _config(trail=2, trunk="replicated"),
    "pipe 2 x trail 2, split trunk": _config(4, pipe=2, trail=2, trunk="split"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_peaks_of_a_ranks_steps_are_the_formula(name):
    config = LAYOUTS[name]
    for stage, ordinary, with_update in run_distributed(_count, config.world_size, config):
        memory = rank_memory(config, stage)
        assert memory.ordinary == pytest.approx(ordinary, rel=0.1), f"stage {stage}"
        assert memory.peak == pytest.approx(max(ordinary, with_update), rel=0.1), f"stage {stage}"
