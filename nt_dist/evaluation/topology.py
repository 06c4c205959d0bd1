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

    Attributes:
        common: Entries that both trails of a pair have.
        expected: What `common` would be for two independent uniformly random topologies with as many slots.
        slots: Of the one trail and the other of each pair.
    """

    common: float = 0
    expected: float = 0
    slots: float = 0

    @property
    def jaccard(self) -> float:
        """Entries common to two trails over entries either has, in 0 .. 1 (Jaccard index of the summed sets)."""
        return self.common / (self.slots - self.common)

    @property
    def chance(self) -> float:
        """What `jaccard` would be by chance: with n entries and k slots, (k²/n) / (2k - k²/n)."""
        return self.expected / (self.slots - self.expected)

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def overlap_of(spec: WeightSpec, shards: Iterable[int], common: float) -> Overlap:
    """Overlap in some shards of a weight whose pairs of trails have ``common`` entries in common, all together."""
    pairs = spec.trails * (spec.trails - 1) // 2
    sizes = [(spec.slots(shard), spec.real_length(shard) * spec.slice_elements) for shard in shards]
    expected = sum(slots * slots / entries for slots, entries in sizes if entries)
    return Overlap(common, pairs * expected, 2 * pairs * sum(slots for slots, _ in sizes))


def trail_overlap(weights: Iterable, mesh) -> Overlap | None:
    """Overlap of the trails' topologies over all weights, given those that this rank holds; a collective of all ranks.

    Dense weights and the trunk's say nothing about it and are left out: None where no sparse weight has two trails.
    """
    total = Overlap()
    for weight in weights:
        if not weight.spec.is_sparse or weight.spec.trails == 1:
            continue
        for shard in weight.shards:
            positions = torch.cat([weight.positions(trail, shard) for trail in weight.trails])
            # an entry that c trails have is common to c (c - 1) / 2 pairs: one count instead of a comparison a pair
            having = torch.bincount(positions.long(), minlength=weight.spec.shard_elements)
            mesh.all_reduce(having, ("trail",))
            total += overlap_of(weight.spec, [shard], int((having * (having - 1) // 2).sum()))
    figures = torch.tensor(astuple(total), dtype=torch.float64, device=mesh.device)
    total = Overlap(*mesh.all_reduce(figures, ("pipe", "tensor")).tolist())
    return total if total.slots else None


def density(specs: Iterable[WeightSpec]) -> float:
    """Active over all entries of the sparse weights and the dense matrices (not of norms), padding left out.

    Updates do not change it, so it follows from the specs (model.weights.weight_specs).

    Raises:
        ValueError: there is no matrix among them.
    """
    matrices = [spec for spec in specs if spec.role != "scale"]
    if not matrices:
        raise ValueError("no matrix to take the density of")
    active = sum(spec.trails * (spec.total_slots() if spec.is_sparse else real_elements(spec)) for spec in matrices)
    return active / sum(spec.trails * real_elements(spec) for spec in matrices)


def real_elements(spec: WeightSpec) -> int:
    """Entries of one trail without the padding."""
    return spec.valid * spec.slice_elements
