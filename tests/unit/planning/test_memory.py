"""Activations, logits and the peak of a pass by formula, against what torch's hooks and allocator count."""

from dataclasses import replace

import pytest
import torch

from benchmarks.allocations import Allocations
from nt_dist.config.settings import Parallel
from nt_dist.families import make_config
from nt_dist.model import functions
from nt_dist.model.chunks import LOGITS_AT_ONCE
from nt_dist.model.functions import AT_ONCE
from nt_dist.model.trails import build_model, weights_of
from nt_dist.planning.local_layers import layer_parts, local_parts, stage_layers
from nt_dist.planning.memory import fullest_stage, rank_memory

BATCH, SEQUENCE = 4, 32


def _config(precision="fp32", world_size=1, model=None, trails=None, sparsity=None, stage=None, **train):
    return make_config(
        {
            "model": {
                "hidden_size": 32,
                "ffn_size": 80,
                "num_layers": 3,
                "num_attention_heads": 4,
                "vocab_size": 64,
                "max_seq_len": SEQUENCE,
                **(model or {}),
            },
            "trails": {"count": 2, "layers": 2, **(trails or {})},
            "sparsity": {"density": 0.5, "topology_shards": 4, **(sparsity or {})},
            "train": {
                "recipe": "paper",
                "batch_size": BATCH * world_size,
                "micro_batch_size": BATCH,
                "precision": precision,
                "warmup_steps": 0,
                **train,
            },
        },
        None if stage is None else {"zero_optimization": {"stage": stage, "reduce_bucket_size": 1000}},
        world_size,
    )


def _model(config):
    model = build_model(config)
    return model.bfloat16() if config.train.precision == "bf16" else model


def _saved_by_layers(config):
    """Bytes of the storages that each layer keeps for backward and no earlier one does; parameters left out."""
    model = _model(config)
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    layers, x = [], torch.randint(64, (BATCH, SEQUENCE))
    keep = []  # so that no storage is freed and its address used again

    def pack(tensor):
        storage = tensor.untyped_storage()
        is_table = tensor.shape == (SEQUENCE, config.model.head_size)  # of the rotary embedding
        if storage.data_ptr() not in seen and not is_table:
            seen.add(storage.data_ptr())
            keep.append(storage)
            layers[-1] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for layer in model:
            layers.append(0)
            x = layer(x)
    return [each for each in layers if each]  # the fork keeps nothing


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"num_kv_heads": 2}},
        {"trails": {"fork": "embedding"}},
        {"trails": {"final_norm_twice": True}},
        {"sparsity": {"storage": "masked"}},
    ],
    ids=["plain", "grouped", "embedding", "norm twice", "masked"],
)
def test_what_layers_keep_is_the_formula_to_the_byte(precision, sections):
    config = _config(precision, **sections)
    assert _saved_by_layers(config) == [layer.kept_bytes for layer in layer_parts(config)]


PASSES = {
    "fp32": _config(),
    "bf16": _config("bf16"),
    "computed again": _config("bf16", activation_checkpointing=True, model={"num_layers": 6}, trails={"layers": 4}),
    "large vocabulary": _config(model={"vocab_size": 1024}),
    "large vocabulary, bf16": _config("bf16", model={"vocab_size": 1024}),
    "large vocabulary, joint": _config(model={"vocab_size": 1024}, trails={"joint": 0.5}),
    "large vocabulary, joint, bf16": _config("bf16", model={"vocab_size": 1024}, trails={"joint": 0.5}),
    "dense copies kept": _config(keep_dense=True, model={"hidden_size": 64}),
    "few tokens, masked": _config(
        model={"hidden_size": 128, "vocab_size": 1024, "max_seq_len": 8}, sparsity={"storage": "masked"}
    ),
    "few tokens": _config(model={"hidden_size": 128, "vocab_size": 1024, "max_seq_len": 8}),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_peak_of_a_pass_is_the_formula(name):
    config = PASSES[name]
    model = _model(config).train()
    tokens, targets = torch.randint(64, (2, BATCH, config.model.max_seq_len))
    weights = torch.ones(targets.shape)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model(tokens, targets, weights).sum().backward()  # makes the rotary tables
    for weight in weights_of(model).values():
        weight.keep_built(config.train.keep_dense)
    with Allocations(torch.device("cpu")) as allocations:
        allocations.mark("start")
        model(tokens, targets, weights).sum().backward()
        allocations.mark("stop")
    memory = rank_memory(config)
    found = allocations.peak("start", "stop")
    said = memory.built + memory.activations + max(memory.logits, memory.work)
    assert said == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", ["large vocabulary", "large vocabulary, bf16"])
def test_the_loss_takes_no_more_than_some_rows_at_once(name, monkeypatch):
    at_once = dict.fromkeys(AT_ONCE, 1 << 14)  # of 2^17 logits a trail
    monkeypatch.setattr(functions, "AT_ONCE", at_once)
    monkeypatch.setattr("nt_dist.planning.memory.AT_ONCE", at_once)
    test_the_peak_of_a_pass_is_the_formula(name)


@pytest.mark.parametrize("name", [name for name in PASSES if "large vocabulary" in name])
def test_the_loss_takes_no_more_than_a_chunks_logits(name, monkeypatch):
    whole = rank_memory(PASSES[name]).logits
    for at_once in (AT_ONCE, LOGITS_AT_ONCE):
        for kind in at_once:
            monkeypatch.setitem(at_once, kind, 1 << 14)
    test_the_peak_of_a_pass_is_the_formula(name)
    assert rank_memory(PASSES[name]).logits < 0.4 * whole


def test_parts_of_all_ranks_are_the_whole_model():
    """Two tensor, two trail ranks and three stages hold each weight; trunk and norms several times."""
    config = _config(sparsity={"topology_shards": 2})
    whole = weights_of(build_model(config))
    assert {part.spec.name: part.stored for part in local_parts(layer_parts(config))} == {
        name: weight.values.numel() for name, weight in whole.items()
    }
    cut = replace(config, parallel=Parallel(tensor=2, pipe=3, trail=2))
    stages = stage_layers(cut)
    assert len(stages) == 3 and all(stages)
    assert [part.spec.name for layers in stages for part in local_parts(layers)] == list(whole)
    for part in local_parts([layer for layers in stages for layer in layers]):
        copies = (2 if part.spec.in_trail else 1) * (2 if part.spec.shards > 1 else 1)
        assert part.entries * copies == whole[part.spec.name].dense().numel()
        assert part.slots * copies == pytest.approx(whole[part.spec.name].active_elements, abs=copies)


def test_trail_ranks_keep_their_share_of_a_split_trunk():
    config = replace(_config(model={"num_layers": 4}), world_size=2)
    split, replicated = (
        layer_parts(replace(config, parallel=Parallel(trail=2, trunk=trunk))) for trunk in ("split", "replicated")
    )
    for half, whole in zip(split, replicated, strict=True):
        shares = 1 if half.parts[0].spec.in_trail else 2
        assert whole.kept_bytes == shares * half.kept_bytes
    again = replace(config, train=replace(config.train, activation_checkpointing=True))
    kept = []
    for trunk in ("split", "replicated"):
        layers = layer_parts(replace(again, parallel=Parallel(trail=2, trunk=trunk)))
        kept.append(sum(layer.kept_bytes for layer in layers))
    assert kept[1] - kept[0] == split[0].kept_bytes + replicated[1].input_bytes  # two trunk blocks


def test_stages_share_the_work():
    """Trail blocks count once for each trail, the output matrix like a block of its size."""
    config = _config(model={"num_layers": 6, "vocab_size": 64}, trails={"layers": 2})
    work = [sum(layer.work for layer in layers) for layers in stage_layers(replace(config, parallel=Parallel(pipe=2)))]
    total = sum(layer.work for layer in layer_parts(config))
    assert sum(work) == total and max(work) < 0.6 * total
    names = [[layer.name for layer in layers] for layers in stage_layers(replace(config, parallel=Parallel(pipe=7)))]
    assert names == [["embedding", "blocks.0"], *[[f"blocks.{number}"] for number in range(1, 6)], ["output"]]


def test_stages_before_the_last_hold_more_micro_batches_and_no_logits():
    config = _config(batch_size=BATCH * 8, model={"num_layers": 4}, trails={"layers": 2})
    cut = replace(config, parallel=Parallel(pipe=4), world_size=4)
    memories = [rank_memory(cut, stage) for stage in range(4)]
    for stage, (memory, layers) in enumerate(zip(memories, stage_layers(cut), strict=True)):
        assert memory.activations == (4 - stage) * sum(layer.kept_bytes for layer in layers)
        assert (memory.logits > 0) == (stage == 3)
    assert fullest_stage(cut).peak == max(memory.peak for memory in memories)


def test_dense_gradients_add_up_over_micro_batches_and_live_beside_activations():
    once, often = _config(batch_size=BATCH), _config(batch_size=2 * BATCH)
    sparse = sum(part.entries for part in local_parts(layer_parts(often)) if part.spec.is_sparse)
    memory = rank_memory(often)
    assert memory.peak == memory.ordinary + 4 * sparse > rank_memory(once).peak
    last = _config(batch_size=2 * BATCH, sparsity={"regrow_from": "last_micro_batch"})
    assert rank_memory(last).peak == rank_memory(once).peak
    static = rank_memory(_config(batch_size=2 * BATCH, sparsity={"update_every": 0}))
    assert static.peak == static.ordinary
