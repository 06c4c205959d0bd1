"""Kernels and bytes are counted as a GPU would launch and move them; those of llama_350m do not grow."""

from pathlib import Path

import torch

from nt_dist.families import load_config
from nt_dist.model.counts import Counting, count_micro_batch

LLAMA = Path(__file__).parents[3] / "configs" / "paper" / "llama_350m.toml"
BLOCKS = {"1 + 1": (2, 1), "2 + 1": (3, 1), "1 + 2": (3, 2)}


def test_what_makes_numbers_is_a_kernel_and_moves_what_it_reads_and_writes():
    x, table = torch.empty(4, 8, device="meta"), torch.empty(100, 8, device="meta")
    with Counting() as counting:
        x.view(8, 4).t()[:2].unsqueeze(0)
        y = torch.empty_like(x)
    assert counting.counts.kernels == 0
    with Counting() as counting:
        y.copy_(x.sum(0, keepdim=True).expand(4, 8))  # 128 + 32 bytes, then 32 + 128
        table.index_select(0, torch.empty(4, dtype=torch.long, device="meta"))  # 128 of the table, 32, 128
        x.add_(x[:2].sum())  # 64 + 4, then 128 + 4 + 128
    assert counting.counts.calls == {"sum": 2, "copy_": 1, "index_select": 1, "add_": 1}
    assert counting.counts.moved == {"sum": 160 + 68, "copy_": 160, "index_select": 288, "add_": 260}


def test_a_micro_batch_of_llama_350m_with_all_matrices_sparse_launches_no_more_than_it_did():
    counted = {}
    for name, (layers, in_trail) in BLOCKS.items():
        overrides = [f"model.num_layers={layers}", f"trails.layers={in_trail}", "sparsity.distribution=uniform"]
        counted[name] = count_micro_batch(load_config(LLAMA, overrides, None, world_size=1, check_paths=False))
    base, trunk, trail = counted.values()
    whole = {
        what: getattr(base, what)
        + 7 * (getattr(trunk, what) - getattr(base, what))
        + 15 * (getattr(trail, what) - getattr(base, what))
        for what in ("kernels", "bytes")
    }
    assert (whole["kernels"], round(whole["bytes"] / 1e9)) == (1877, 104)


def test_what_is_computed_again_is_counted_again():
    def count(*overrides):
        overrides = ["model.num_layers=2", "trails.layers=1", *overrides]
        return count_micro_batch(load_config(LLAMA, overrides, None, world_size=1, check_paths=False)).calls

    once, twice = count(), count("train.activation_checkpointing=true")
    for name in ("rms_norm", "_scaled_dot_product_flash_attention", "silu"):
        assert twice[name] == 2 * once[name] - (name == "rms_norm") * 3  # the output's three norms are not in a block
    assert twice["rms_norm_backward"] == once["rms_norm_backward"]


def test_a_micro_batch_of_pictures_is_counted():
    config = load_config(LLAMA.parents[1] / "quickstart_images.toml", [], None, world_size=1, check_paths=False)
    assert count_micro_batch(config).calls["convolution"] > 10


def test_a_vocabulary_of_256_pieces_is_no_bytes():
    overrides = ["model.num_layers=2", "trails.layers=1", "model.vocab_size=256"]
    assert count_micro_batch(load_config(LLAMA, overrides, None, world_size=1, check_paths=False)).calls["embedding"]


def test_dense_copies_that_are_kept_are_not_built_again():
    def count(*overrides):
        overrides = ["model.num_layers=2", "trails.layers=1", "sparsity.density=0.4", *overrides]
        return count_micro_batch(load_config(LLAMA, overrides, None, world_size=1, check_paths=False)).calls

    often, once = count(), count("train.keep_dense=true")
    assert often["scatter_"] > 30 and once["scatter_"] < 10 and often["bmm"] == once["bmm"]
    assert once.total() < 0.8 * often.total()
