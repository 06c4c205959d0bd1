"""The formula against a count by hand and against torch's own counter on the plain model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_model import PlainModel
from nt_dist.families import make_config
from nt_dist.llama.weights import padded_vocab_size
from nt_dist.model.flops import token_flops, training_flops

SIZES = {
    "model": {
        "hidden_size": 16,
        "ffn_size": 24,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": 32,
        "max_seq_len": 8,
    },
    "trails": {"count": 3, "layers": 2},
    "sparsity": {"density": 0.5, "distribution": "uniform", "topology_shards": 2, "update_every": 10},
    "train": {"recipe": "paper", "steps": 100, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 10},
}
BLOCK = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24  # query, output; key, value at 2 of 4 heads; SwiGLU
MATRICES = BLOCK * (1 + 3 * 2) + 3 * 32 * 16  # the trunk's block once, each trail's blocks and output
ATTENTION = 4 * 8 * 16 * (1 + 3 * 2)  # products with the keys and values of 8 tokens


def _config(**changes):
    sections = {name: dict(values) for name, values in SIZES.items()}
    for key, value in changes.items():
        section, entry = key.split("__")
        sections.setdefault(section, {})[entry] = value
    return make_config(sections)


def test_a_count_by_hand():
    flops = token_flops(_config())
    assert flops.inference_dense == 2 * MATRICES + ATTENTION
    assert flops.inference_sparse == MATRICES + ATTENTION  # density 0.5 everywhere; every shard has an even size
    assert flops.training_dense == 3 * flops.inference_dense


def test_torchs_counter_finds_the_same_products():
    config = _config()
    model = PlainModel(config)
    tokens = torch.zeros(2, 8, dtype=torch.long)
    # the math kernel, because torch does not count the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(tokens)
    flops = token_flops(config)
    counts = counter.get_flop_counts()["Global"]
    assert counts[torch.ops.aten.mm] == 2 * MATRICES * tokens.numel()
    assert sum(counts.values()) == flops.inference_dense * tokens.numel()


def test_a_full_ensemble_shares_no_trunk():
    shared, full = token_flops(_config()), token_flops(_config(trails__fork="embedding"))
    # the trunk's block twice more
    assert full.inference_dense - shared.inference_dense == 2 * (2 * BLOCK + ATTENTION // 7)


def test_a_padded_vocabulary_counts_its_real_rows():
    odd = _config(model__vocab_size=31, sparsity__topology_shards=8, model__num_kv_heads=4)
    even = _config(model__vocab_size=32, sparsity__topology_shards=8, model__num_kv_heads=4)
    assert padded_vocab_size(even) == padded_vocab_size(odd) == 32
    assert token_flops(even).inference_dense - token_flops(odd).inference_dense == 2 * 3 * 16


def test_updates_by_gradient_cost_their_dense_gradients_and_others_nothing():
    flops = token_flops(_config())
    # 9 updates in 100 steps: none after the last one
    assert flops.regrowth == pytest.approx((flops.inference_dense - flops.inference_sparse) * 9 / 100)
    assert token_flops(_config(sparsity__stop_fraction=0.5)).regrowth == pytest.approx(flops.regrowth * 5 / 9)
    half = token_flops(_config(sparsity__regrow_from="last_micro_batch"))
    assert half.regrowth == pytest.approx(flops.regrowth / 2)
    for static in ({"sparsity__update_every": 0}, {"sparsity__grow": "random", "sparsity__new_moments": "zero"}):
        assert token_flops(_config(**static)).regrowth == 0
    dense = token_flops(_config(sparsity__density=1.0))
    assert dense.training_sparse == dense.training_dense == flops.training_dense


def test_a_falling_density_counts_each_step_at_its_own():
    falls = {"start_density": 1.0, "density_stages": 2, "density_until": 0.5, "update_every": 0}
    config = _config(**{f"sparsity__{key}": value for key, value in falls.items()})
    dense, half = 6 * MATRICES, 3 * MATRICES  # operations of density 1 for 25 steps, 0.5625 for 25 and 0.5 for 50
    assert training_flops(config) == pytest.approx(dense / 4 + 0.5625 * dense / 4 + half / 2 + 3 * ATTENTION, rel=1e-3)
    assert training_flops(_config()) == token_flops(_config()).training_sparse
