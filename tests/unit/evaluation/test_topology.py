"""Overlap and density of topologies, on topologies whose answer is known."""

from dataclasses import dataclass, field

import pytest
import torch

from nt_dist.evaluation.topology import density, trail_overlap
from nt_dist.sparsity.spec import WeightSpec
from tests.unit.evaluation.prediction_case import ALONE


@dataclass
class Held:
    """A weight as `topology` reads it: which trails and shards, and the positions of each."""

    spec: WeightSpec
    topology: dict = field(default_factory=dict)

    @property
    def trails(self):
        return range(self.spec.trails)

    @property
    def shards(self):
        return range(self.spec.shards)

    def positions(self, trail, shard):
        return torch.tensor(self.topology[trail, shard], dtype=torch.int32)


def _weight(*by_trail, **spec):
    """One shard of 4 x 5 entries a trail at density 0.2 (4 slots)."""
    spec = WeightSpec("w", (4, 5), trails=len(by_trail), density=0.2, **spec)
    return Held(spec, {(trail, 0): positions for trail, positions in enumerate(by_trail)})


def test_overlap_of_three_trails_is_counted_over_pairs():
    # pairs: (0,1) share 2, 3; (0,2) share 3; (1,2) share 3, 4 -> 5 common, 3 * 8 - 5 = 19 in either
    overlap = trail_overlap([_weight([0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 6, 7])], ALONE)
    assert overlap.jaccard == pytest.approx(5 / 19)
    assert overlap.chance == pytest.approx(0.8 / (8 - 0.8))  # 4 slots of 20


def test_equal_topologies_overlap_fully_and_disjoint_ones_not_at_all():
    assert trail_overlap([_weight([1, 2, 3, 4], [1, 2, 3, 4])], ALONE).jaccard == 1
    assert trail_overlap([_weight([1, 2, 3, 4], [5, 6, 7, 8])], ALONE).jaccard == 0


def test_chance_is_what_random_topologies_have():
    generator = torch.Generator().manual_seed(0)
    spec = WeightSpec("w", (100, 100), trails=4, shards=2, density=0.3)
    topology = {
        (trail, shard): torch.randperm(5000, generator=generator)[:1500].sort().values.tolist()
        for trail in range(4)
        for shard in range(2)
    }
    overlap = trail_overlap([Held(spec, topology)], ALONE)
    assert overlap.jaccard == pytest.approx(overlap.chance, rel=0.02)
    assert overlap.chance == pytest.approx(0.3 / (2 - 0.3))


def test_weights_are_summed_and_trunk_and_dense_ones_left_out():
    one, other = (
        _weight([1, 2, 3, 4], [1, 2, 3, 4]),
        _weight([1, 2, 3, 4], [5, 6, 7, 8]),
    )
    trunk = _weight([1, 2, 3, 4])
    dense = Held(WeightSpec("d", (4, 5), trails=2))
    assert trail_overlap([one, other, trunk, dense], ALONE).jaccard == pytest.approx(4 / 12)
    assert trail_overlap([trunk, dense], ALONE) is None


def test_density_leaves_padding_and_norms_out():
    padded = WeightSpec("embedding", (8, 10), shards=2, valid=5, density=0.5, role="lookup")  # 20 + 5 of 50
    dense = WeightSpec("d", (5, 10), trails=2)  # 100 of 100
    norm = WeightSpec("norm", (1000,), role="scale")
    assert density([padded, dense, norm]) == pytest.approx(125 / 150)
    with pytest.raises(ValueError, match="no matrix"):
        density([norm])
