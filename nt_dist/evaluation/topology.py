"""How far the trails' topologies have grown apart, how dense they are, and how they moved over a run.

Reads weights (sparsity.weight.Weight) only through `spec`, `trails`, `shards` and `positions`, so it is the same for
every storage. Figures are of the whole model, however it is cut.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import reduce
from itertools import chain, pairwise
from operator import add
from pathlib import Path

import numpy as np
import torch

from nt_dist.checkpoint import folder as checkpoint_folder
from nt_dist.checkpoint.folder import Found
from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.errors import CheckpointError
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.spec import WeightSpec

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overlap:
    """Active entries that pairs of trails share, summed over pairs (and, by `+`, over weights)."""

    common: float = 0
    """Entries that both trails of a pair have."""
    expected: float = 0
    """What `common` would be for two independent uniformly random topologies with as many slots."""
    slots: float = 0
    """Of the one trail and the other of each pair."""

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
    matrices = [spec for spec in specs if not spec.is_vector]
    if not matrices:
        raise ValueError("no matrix to take the density of")
    active = sum(spec.trails * (spec.total_slots() if spec.is_sparse else real_elements(spec)) for spec in matrices)
    return active / sum(spec.trails * real_elements(spec) for spec in matrices)


def real_elements(spec: WeightSpec) -> int:
    """Entries of one trail without the padding."""
    return spec.valid * spec.slice_elements


@dataclass(frozen=True)
class _Counts:
    """Active entries of a weight's shard, or of several."""

    common: np.ndarray  # that two trails both have at the end [T, T]; on the diagonal the slots of one
    ever: int  # in any of the checkpoints, over all trails
    moved: np.ndarray  # in one checkpoint and not in the next [checkpoints - 1]

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


def topology_figures(path: Path, mesh: Mesh, specs: dict[str, WeightSpec]) -> dict | None:
    """Overlap of the trails' topologies at a checkpoint, and how they changed up to it. Collective.

    Read are the positions in the checkpoint's files and in those of earlier steps in its folder that are whole and of
    the same weights; ranks divide the shards. What moved and came back between two of them is not seen: churn and the
    share ever active are lower bounds, the closer the more checkpoints ``run.keep`` and ``run.keep_every`` keep.

    Args:
        path: The checkpoint, which is whole.
        mesh: The ranks.
        specs: The weights of its model by name (model.weights.weight_specs).

    Returns:
        What evaluation/full.py documents under "topology"; the share ever active is the in-time over-parameterisation
        rate of Liu et al., arXiv 2102.02887, section 3. None if no weight is sparse.

    Raises:
        CheckpointError: A topology cannot be read, or is not the one that its manifest names; on all ranks.
    """
    sparse = {name: spec for name, spec in specs.items() if spec.is_sparse}
    if not sparse:
        return None
    history = agree(mesh, lambda: _history(path), CheckpointError, only_main=True)
    mine = agree(mesh, lambda: _count(history, sparse, mesh.rank, mesh.world_size), CheckpointError)
    by_shard = defaultdict(list)
    for name, each in chain(*mesh.gather_objects(mine)):
        by_shard[name].append(each)
    counts = {name: reduce(add, by_shard[name]) for name in sparse}
    steps = [found.step for found in history]
    forked = [name for name, spec in sparse.items() if spec.trails > 1]
    shared = {name: float(np.triu(counts[name].common, 1).sum()) for name in forked}
    overlaps = {name: overlap_of(sparse[name], range(sparse[name].shards), shared[name]) for name in forked}
    overlap = dict.fromkeys(("overlap", "overlap_chance", "overlap_matrix"))
    if forked:
        alike, common = sum(overlaps.values(), Overlap()), sum(counts[name].common for name in forked)
        slots = np.diag(common)
        matrix = common / (slots[:, None] + slots - common)  # [T, T]
        overlap = {"overlap": alike.jaccard, "overlap_chance": alike.chance, "overlap_matrix": matrix.tolist()}
    jaccard = {name: overlaps[name].jaccard if name in overlaps else None for name in sparse}
    return {
        "checkpoints": steps,
        **overlap,
        **_shares(sparse.values(), counts.values(), steps),
        "weights": {
            name: {"overlap": jaccard[name], **_shares([spec], [counts[name]], steps)} for name, spec in sparse.items()
        },
    }


def _history(path: Path) -> list[Found]:
    """The checkpoint in ``path`` and, before it, those of earlier steps beside it that can be compared with it."""
    last = checkpoint_folder.look(path)
    if last.problem:
        raise CheckpointError(last.problem)
    earlier = [each for each in checkpoint_folder.checkpoints(path.parent) if each.step < last.step]
    history = []
    for each in sorted(earlier, key=lambda found: found.step):
        problem = each.problem.replace("\n", "; ") or ("another model" if _described(each) != _described(last) else "")
        if problem:
            _LOGGER.warning("checkpoint %s is left out of the topology's history: %s", each.path.name, problem)
        else:
            history.append(each)
    return [*history, last]


def _described(found: Found) -> dict:
    return {name: entry.description() for name, entry in found.manifest.weights.items()}


def _count(history: list[Found], specs: dict[str, WeightSpec], rank: int, ranks: int) -> list[tuple[str, _Counts]]:
    """Counts this rank's share of the shards, each under its weight's name."""
    shards = [(name, shard) for name, spec in specs.items() for shard in range(spec.shards)]
    with ExitStack() as stack:
        readers = [stack.enter_context(FragmentReader(found.path, found.manifest)) for found in history]
        return [(name, _count_shard(readers, specs[name], shard)) for name, shard in shards[rank::ranks]]


def _count_shard(readers: list[FragmentReader], spec: WeightSpec, shard: int) -> _Counts:
    active = ever = np.zeros((spec.trails, spec.shard_elements), dtype=bool)
    moved = []
    for reader in readers:
        before, active = active, np.zeros_like(active)
        for trail in range(spec.trails):
            active[trail, reader.read(spec.name, trail, shard, ())["positions"]] = True
        ever = ever | active
        moved.append(np.count_nonzero(before & ~active))
    common = [[np.count_nonzero(one & other) for other in active] for one in active]
    return _Counts(np.array(common), np.count_nonzero(ever), np.array(moved[1:], dtype=int))


def _shares(specs: Iterable[WeightSpec], counts: Collection[_Counts], steps: list[int]) -> dict:
    """Density, share ever active and churn of several weights."""
    entries = sum(spec.trails * real_elements(spec) for spec in specs)
    slots, ever = float(sum(each.common.trace() for each in counts)), sum(each.ever for each in counts)
    moved = sum(each.moved for each in counts).tolist()
    churn = [
        {"from": before, "to": after, "share": count / slots}
        for (before, after), count in zip(pairwise(steps), moved, strict=True)
    ]
    return {"density": slots / entries, "ever_active": ever / entries, "churn": churn}
