"""What became of the topology over a run, as far as the checkpoints that were kept show it.

Positions are read from the files, shard by shard, so this needs no model and no layout; ranks divide the shards.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from itertools import chain, pairwise
from operator import add
from pathlib import Path

import numpy as np

from nt_dist.checkpoint import folder as checkpoint_folder
from nt_dist.checkpoint.folder import Found
from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.errors import CheckpointError
from nt_dist.evaluation.topology import Overlap, overlap_of, real_elements
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.spec import WeightSpec

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Counts:
    """Active entries of a weight's shard, or of several.

    Attributes:
        common: Entries that two trails both have at the end [T, T]; on the diagonal the slots of one.
        ever: Active in any of the checkpoints, over all trails.
        moved: Active in one checkpoint and not in the next [checkpoints - 1].
    """

    common: np.ndarray
    ever: int
    moved: np.ndarray

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


def topology_figures(path: Path, mesh: Mesh, specs: dict[str, WeightSpec]) -> dict | None:
    """Overlap of the trails' topologies at a checkpoint, and how they changed up to it. Collective.

    Read are the checkpoint and those of earlier steps in its folder that are whole and of the same weights. What moved
    and came back between two of them is not seen: churn and the share ever active are lower bounds, the closer the more
    checkpoints ``run.keep`` and ``run.keep_every`` keep.

    Args:
        path: The checkpoint, which is whole.
        mesh: The ranks.
        specs: The weights of its model by name (model.weights.weight_specs).

    Returns:
        What evaluation/full.py documents under "topology": overlap as evaluation.topology.Overlap has it; the share
        ever active is the in-time over-parameterisation rate of Liu et al., arXiv 2102.02887, section 3. None if no
        weight is sparse.

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
    overlaps = {}
    for name in forked:
        common = float(np.triu(counts[name].common, 1).sum())
        overlaps[name] = overlap_of(sparse[name], range(sparse[name].shards), common)
    alike = sum(overlaps.values(), Overlap())
    weights = {
        name: {
            "overlap": overlaps[name].jaccard if name in overlaps else None,
            **_shares([spec], [counts[name]], steps),
        }
        for name, spec in sparse.items()
    }
    return {
        "checkpoints": steps,
        "overlap": alike.jaccard if forked else None,
        "overlap_chance": alike.chance if forked else None,
        "overlap_matrix": _jaccard(sum(counts[name].common for name in forked)).tolist() if forked else None,
        **_shares(sparse.values(), counts.values(), steps),
        "weights": weights,
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


def _jaccard(common: np.ndarray) -> np.ndarray:
    """Jaccard indices [T, T] of sets, given how many entries two have in common [T, T]."""
    sizes = np.diag(common)
    return common / (sizes[:, None] + sizes - common)


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
