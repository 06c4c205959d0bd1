"""How far the trails' topologies have grown apart, how dense they are, and how they moved over a run.

Reads weights (sparsity.weight.Weight) only through `spec`, `trails`, `shards` and `positions`, so it is the same for
every storage. Figures are of the whole model, however it is cut.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from itertools import chain, pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

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


class Overlap(NamedTuple):
    """How much the topologies of two trails have in common, over all pairs of trails and all weights together."""

    jaccard: float  # active entries common to both over those that either has, in 0 .. 1
    chance: float  # what it would be for independent uniformly random topologies with as many slots

    @classmethod
    def of(cls, common: float, expected: float, slots: float) -> "Overlap":
        """From what :func:`overlap_sums` gives. With n entries and k slots, chance is (k²/n) / (2k - k²/n)."""
        return cls(common / (slots - common), expected / (slots - expected))


def overlap_sums(spec: WeightSpec, shards: Iterable[int], common: float) -> np.ndarray:
    """Sums over the pairs of a weight's trails in some shards [3]: ``common``, the entries that both have, what these
    would be by chance, and the slots of the one trail and the other."""
    pairs = spec.trails * (spec.trails - 1) // 2
    sizes = [(spec.slots(shard), spec.real_length(shard) * spec.slice_elements) for shard in shards]
    expected = sum(slots * slots / entries for slots, entries in sizes if entries)
    return np.array([common, pairs * expected, 2 * pairs * sum(slots for slots, _ in sizes)])


def trail_overlap(weights: Iterable, mesh) -> Overlap | None:
    """Overlap of the trails' topologies over all weights, given those that this rank holds; a collective of all ranks.

    Dense weights and the trunk's say nothing about it and are left out: None where no sparse weight has two trails.
    """
    total = np.zeros(3)
    for weight in weights:
        if not weight.spec.is_sparse or weight.spec.trails == 1:
            continue
        for shard in weight.shards:
            positions = torch.cat([weight.positions(trail, shard) for trail in weight.trails])
            # an entry that c trails have is common to c (c - 1) / 2 pairs: one count instead of a comparison a pair
            having = torch.bincount(positions.long(), minlength=weight.spec.shard_elements)
            mesh.all_reduce(having, ("trail",))
            total += overlap_sums(weight.spec, [shard], int((having * (having - 1) // 2).sum()))
    total = mesh.all_reduce(torch.from_numpy(total).to(mesh.device), ("pipe", "tensor")).tolist()
    return Overlap.of(*total) if any(total) else None


def density(specs: Iterable[WeightSpec]) -> float:
    """Active over all entries of the sparse weights and the dense matrices (not of norms), padding left out.

    Updates do not change it, so it follows from the specs; a ValueError if there is no matrix among them.
    """
    matrices = [spec for spec in specs if not spec.is_vector]
    if not matrices:
        raise ValueError("no matrix to take the density of")
    active = sum(spec.trails * (spec.total_slots() if spec.is_sparse else prod(spec.real_shape)) for spec in matrices)
    return active / sum(spec.trails * prod(spec.real_shape) for spec in matrices)


class _Counts(NamedTuple):
    """Active entries of a weight's shard, or of several."""

    common: np.ndarray  # that two trails both have at the end [T, T]; on the diagonal the slots of one
    ever: int  # in any of the checkpoints, over all trails
    moved: np.ndarray  # in one checkpoint and not in the next [checkpoints - 1]


def topology_figures(path: Path, mesh: Mesh, specs: dict[str, WeightSpec]) -> dict | None:
    """Overlap of the trails' topologies at a checkpoint, and how they changed up to it. Collective.

    Read are the positions in the checkpoint's files and in those of earlier steps in its folder that are whole and of
    the same weights; ranks divide the shards. What moved and came back between two of them is not seen: churn and the
    share ever active are lower bounds, the closer the more checkpoints ``run.keep`` and ``run.keep_every`` keep.

    Returns what evaluation/full.py documents under "topology", None if no weight is sparse. The share ever active is
    the in-time over-parameterisation rate of Liu et al., arXiv 2102.02887, section 3. A CheckpointError, on all ranks,
    says that a topology cannot be read, or is not the one that its manifest names.
    """
    sparse = {name: spec for name, spec in specs.items() if spec.is_sparse}
    if not sparse:
        return None
    history = agree(mesh, lambda: _history(path), CheckpointError, only_main=True)
    mine = agree(mesh, lambda: _count(history, sparse, mesh.rank, mesh.world_size), CheckpointError)
    by_shard = defaultdict(list)
    for name, each in chain(*mesh.gather_objects(mine)):
        by_shard[name].append(each)
    counts = {name: _Counts(*map(sum, zip(*by_shard[name], strict=True))) for name in sparse}
    steps = [found.step for found in history]
    weights = {name: {"overlap": None, **_shares([spec], [counts[name]], steps)} for name, spec in sparse.items()}
    overlap: dict = dict.fromkeys(("overlap", "overlap_chance", "overlap_matrix"))
    if forked := [(name, spec) for name, spec in sparse.items() if spec.trails > 1]:
        total, common = np.zeros(3), sum(counts[name].common for name, _ in forked)
        for name, spec in forked:
            sums = overlap_sums(spec, range(spec.shards), float(np.triu(counts[name].common, 1).sum()))
            weights[name]["overlap"] = Overlap.of(*sums.tolist()).jaccard
            total += sums
        slots = np.diag(common)
        matrix = common / (slots[:, None] + slots - common)  # [T, T]
        overlap = dict(zip(overlap, (*Overlap.of(*total.tolist()), matrix.tolist()), strict=True))
    return {"checkpoints": steps, **overlap, **_shares(sparse.values(), counts.values(), steps), "weights": weights}


def _history(path: Path) -> list[Found]:
    """The checkpoint in ``path`` and, before it, those of earlier steps beside it that can be compared with it."""

    def described(found: Found) -> dict:
        return {name: entry.description() for name, entry in found.manifest.weights.items()}

    last = checkpoint_folder.look(path)
    if last.problem:
        raise CheckpointError(last.problem)
    earlier = [each for each in checkpoint_folder.checkpoints(path.parent) if each.step < last.step]
    history = []
    for each in sorted(earlier, key=lambda found: found.step):
        problem = each.problem.replace("\n", "; ") or ("" if described(each) == described(last) else "another model")
        if problem:
            _LOGGER.warning("checkpoint %s is left out of the topology's history: %s", each.path.name, problem)
        else:
            history.append(each)
    return [*history, last]


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
    entries = sum(spec.trails * prod(spec.real_shape) for spec in specs)
    slots, ever = float(sum(each.common.trace() for each in counts)), sum(each.ever for each in counts)
    moved = sum(each.moved for each in counts).tolist()
    churn = [
        {"from": before, "to": after, "share": count / slots}
        for (before, after), count in zip(pairwise(steps), moved, strict=True)
    ]
    return {"density": slots / entries, "ever_active": ever / entries, "churn": churn}
