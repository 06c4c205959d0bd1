"""How far the trails' topologies have grown apart, and how dense they really are.

Reads weights (sparsity.weight.Weight) only through `spec`, `trails`, `shards` and `positions`, so it is the same for
every storage. Figures are of the whole model, however it is cut.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch

from nt_dist.sparsity.spec import WeightSpec


@dataclass(frozen=True)
class Overlap:
    """Active entries that pairs of trails share, summed over pairs (and, by `+`, over weights).

    `expected_*` is what two independent uniformly random topologies with the same number of slots would have.
    """

    common: float
    union: float
    expected_common: float
    expected_union: float

    @property
    def jaccard(self) -> float:
        """Entries common to two trails over entries either has, in 0 .. 1 (Jaccard index of the summed sets)."""
        return self.common / self.union

    @property
    def chance(self) -> float:
        """What `jaccard` would be by chance: with n entries and k slots, (k²/n) / (2k - k²/n)."""
        return self.expected_common / self.expected_union

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(
            self.common + other.common,
            self.union + other.union,
            self.expected_common + other.expected_common,
            self.expected_union + other.expected_union,
        )


def trail_overlap(weights: Iterable, mesh=None) -> Overlap | None:
    """Overlap of the trails' topologies over all of `weights`.

    Dense weights and the trunk's say nothing about it and are left out.

    Args:
        weights: The weights that this rank holds.
        mesh: parallel.mesh.Mesh; None if this rank holds all. With a mesh a collective of all ranks.

    Returns:
        The sum over the weights, or None where no sparse weight has two trails.
    """
    alike = [weight for weight in weights if weight.spec.is_sparse and weight.spec.trails > 1]
    total = sum((_overlap(weight, mesh) for weight in alike), Overlap(0, 0, 0, 0))
    if mesh is not None:
        figures = torch.tensor(astuple(total), dtype=torch.float64, device=mesh.device)
        total = Overlap(*mesh.all_reduce(figures, ("pipe", "tensor")).tolist())
    return total if total.union else None


def _overlap(weight, mesh) -> Overlap:
    total = Overlap(0, 0, 0, 0)
    for shard in weight.shards:
        positions = torch.cat([weight.positions(trail, shard) for trail in weight.trails])
        # an entry that c trails have is common to c (c - 1) / 2 pairs: one count instead of a comparison a pair
        having = torch.bincount(positions.long(), minlength=weight.spec.shard_elements)
        if mesh is not None:
            mesh.all_reduce(having, ("trail",))
        total += overlap_of(weight.spec, shard, int((having * (having - 1) // 2).sum()))
    return total


def overlap_of(spec: WeightSpec, shard: int, common: float) -> Overlap:
    """Overlap in one shard of a weight whose pairs of trails have ``common`` active entries in common, all together."""
    pairs = spec.trails * (spec.trails - 1) // 2
    slots, entries = spec.slots(shard), real_elements(spec, shard)
    expected = pairs * slots * slots / entries if entries else 0
    return Overlap(common, pairs * 2 * slots - common, expected, pairs * 2 * slots - expected)


def density(specs: Iterable[WeightSpec]) -> float:
    """Active over all entries of the sparse weights and the dense matrices (not of norms), padding left out.

    Updates do not change it, so it follows from the specs (model.weights.weight_specs).

    Raises:
        ValueError: there is no matrix among them.
    """
    active = entries = 0
    for spec in specs:
        if spec.role == "scale":
            continue
        for shard in range(spec.shards):
            real = real_elements(spec, shard)
            active += spec.trails * (spec.slots(shard) if spec.is_sparse else real)
            entries += spec.trails * real
    if not entries:
        raise ValueError("no matrix to take the density of")
    return active / entries


def real_elements(spec: WeightSpec, shard: int) -> int:
    """Entries of one shard of one trail without the padding."""
    return spec.real_length(shard) * spec.slice_elements
