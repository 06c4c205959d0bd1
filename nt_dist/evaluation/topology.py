"""How far the trails' topologies have grown apart, and how dense they really are.

Reads weights (sparsity.storage.Weight) only through `spec`, `trails`, `shards` and `positions`, so it is the same for
every storage. Figures cover the trails and shards that this rank holds, those of the `whole_` functions all there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nt_dist.config.settings import Config
from nt_dist.model.weights import weight_specs
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.shards import WeightSpec


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


def trail_overlap(weights: Iterable) -> Overlap | None:
    """Overlap of the trails' topologies over all of `weights`.

    Dense weights and the trunk's say nothing about it and are left out.

    Returns:
        The sum over the weights, or None where no sparse weight has two trails here.
    """
    parts = [_overlap(weight) for weight in weights if weight.spec.is_sparse and len(weight.trails) > 1]
    return sum(parts[1:], parts[0]) if parts else None


def whole_overlap(weights: Iterable, mesh: Mesh) -> Overlap | None:
    """The :func:`trail_overlap` of all stages of a pipeline together. Collective."""
    own = trail_overlap(weights) if mesh.data.rank == 0 else None
    parts = [part for part in mesh.gather_objects(own) if part is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _overlap(weight) -> Overlap:
    num_trails = len(weight.trails)
    pairs = num_trails * (num_trails - 1) // 2
    total = Overlap(0, 0, 0, 0)
    for shard in weight.shards:
        positions = torch.cat([weight.positions(trail, shard) for trail in weight.trails])
        # an entry that c trails have is common to c (c - 1) / 2 pairs: one count instead of a comparison a pair
        having = torch.bincount(positions.long())
        common = int((having * (having - 1) // 2).sum())
        slots = weight.spec.slots(shard)
        entries = real_elements(weight.spec, shard)
        expected = pairs * slots * slots / entries if entries else 0
        total += Overlap(common, pairs * 2 * slots - common, expected, pairs * 2 * slots - expected)
    return total


def density(weights: Iterable) -> float:
    """Active over all entries of the sparse weights and the dense matrices (not of norms), padding left out.

    Raises:
        ValueError: there is no matrix among them.
    """
    active = entries = 0
    for weight in weights:
        if weight.spec.role == "scale":
            continue
        for shard in weight.shards:
            real = real_elements(weight.spec, shard)
            active += len(weight.trails) * (weight.spec.slots(shard) if weight.spec.is_sparse else real)
            entries += len(weight.trails) * real
    if not entries:
        raise ValueError("no matrix to take the density of")
    return active / entries


class _Whole(NamedTuple):
    """All of a weight, as if one rank held it."""

    spec: WeightSpec
    trails: range
    shards: range


def whole_density(config: Config) -> float:
    """The :func:`density` of the whole model of ``config``, whatever part of it this rank holds."""
    specs = weight_specs(config).values()
    return density(_Whole(spec, range(spec.trails), range(spec.shards)) for spec in specs)


def real_elements(spec, shard: int) -> int:
    """Entries of one shard of one trail without the padding."""
    return spec.real_length(shard) * spec.slice_elements
