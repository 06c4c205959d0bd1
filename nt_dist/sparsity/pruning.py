"""Magnitude pruning of shards (Zhu and Gupta, arXiv 1710.01878, §3): the largest weights stay."""

import torch

from nt_dist.sparsity.groups import Groups
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.weight import Fragments, padding_mask


def largest(spec: WeightSpec, fragments: Fragments, blocks: torch.Tensor) -> torch.Tensor:
    """Return the positions, ascending, int64 [R, slots], of the largest magnitudes (the first of equal ones) in shards
    of equal slots and padding, whose entries are ``blocks`` [R, elements]."""
    if not spec.is_sparse:
        return torch.arange(spec.shard_elements).expand(len(fragments), -1)
    if spec.group:
        groups = Groups.of(spec, fragments[0][1])
        norms = groups.norms(blocks[:, : groups.rows * groups.columns].unflatten(1, (groups.rows, -1)))
        order = norms.sort(dim=1, descending=True, stable=True).indices[:, : groups.units[1]].sort(dim=1).values
        return groups.positions(groups.spread(order.view(len(fragments), groups.count, groups.units[1])))
    score, padding = blocks.abs(), padding_mask(spec, fragments[0][1])
    if padding is not None:
        score[:, padding] = -1.0
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order[:, : spec.slots(fragments[0][1])].sort(dim=1).values


def pruned(spec: WeightSpec, shard: int, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what stays of one shard's state, 1-D tensors by name, where ``spec`` has fewer slots than it.

    Of a shard that was dense there are no "positions" yet; there will be if ``spec`` is sparse.
    """
    dense = {name: each for name, each in state.items() if name != "positions"}
    if "positions" in state:
        old, zeros = state["positions"].long(), torch.zeros(spec.shard_elements)
        dense = {name: zeros.scatter(0, old, each) for name, each in dense.items()}
    (kept,) = largest(spec, [(0, shard)], dense["value"][None])
    return {"positions": kept.int(), **{name: each[kept] for name, each in dense.items()}}
