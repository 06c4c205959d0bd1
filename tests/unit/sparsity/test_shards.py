"""How a weight is cut: blocks, flat places and positions, slot counts, padding."""

import pytest
import torch

from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import MaskedWeight
from nt_dist.sparsity.weight import block_positions, flat_index, padding_mask


@pytest.mark.parametrize("shape,cut_axis", [((8, 6), 0), ((6, 8), 1), ((4, 8, 3, 3), 1), ((8, 4, 3), 0)])
@pytest.mark.parametrize("shards", [range(4), range(1, 3), range(3, 4)])
def test_blocks_flat_places_and_positions_agree(shape, cut_axis, shards):
    spec = WeightSpec("w", shape, cut_axis, trails=2, shards=4, density=0.5)
    local = spec.local_shape(shards)
    dense = torch.arange(2 * torch.Size(local).numel()).view(2, *local)
    weight = MaskedWeight(spec, shards=shards)
    for number, shard in enumerate(shards):
        positions = torch.arange(spec.shard_elements)
        flat = flat_index(spec, shards, shard, positions)
        blocks = weight.blocks(dense, [(0, shard), (1, shard)])
        assert torch.equal(dense.flatten(1)[:, flat], blocks)
        assert torch.equal(block_positions(spec, shards, flat), positions)
        cut = dense.narrow(cut_axis + 1, number * spec.shard_length, spec.shard_length)
        assert torch.equal(cut.flatten(1), blocks)


def test_slots_are_the_density_of_the_real_entries():
    spec = WeightSpec("embedding", (24, 4), 0, shards=4, valid=20, density=0.3)
    assert [spec.real_length(shard) for shard in range(4)] == [6, 6, 6, 2]
    assert [spec.slots(shard) for shard in range(4)] == [7, 7, 7, 2]  # 0.3 of 24 and of 8
    assert spec.total_slots() == 23 and spec.total_slots(range(2, 4)) == 9


def test_a_shard_of_padding_has_no_slots_and_a_small_one_has_at_least_one():
    spec = WeightSpec("embedding", (32, 2), 0, shards=8, valid=25, density=0.01)
    assert [spec.slots(shard) for shard in range(8)] == [1] * 7 + [0]


def test_padding_mask():
    spec = WeightSpec("w", (4, 12), 1, shards=3, valid=10, density=0.5)
    assert padding_mask(spec, 0) is None
    assert torch.equal(padding_mask(spec, 2).view(4, 4), torch.tensor([[False, False, True, True]] * 4))


def test_a_weight_that_cannot_be_cut_is_a_bug():
    with pytest.raises(AssertionError, match="3 shards"):
        WeightSpec("w", (8, 8), 0, shards=3)
