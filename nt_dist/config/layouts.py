"""Rules of the mesh: which degrees of tensor, pipe and trail parallelism a model and a number of ranks allow."""

import math
from collections.abc import Iterator
from dataclasses import replace

from nt_dist.config.names import nearest_numbers
from nt_dist.config.settings import Config, Parallel

KEYS = (
    "parallel.tensor",
    "parallel.pipe",
    "parallel.trail",
    "parallel.trunk",
    "model.num_layers",
    "sparsity.topology_shards",
    "trails.count",
    "trails.fork",
    "train.micro_batch_size",
    "train.precision",
)
"""What these rules read, beside what the family says."""


def check(config: Config) -> Iterator[str]:
    """Say what is wrong with the layout and, where there is one, the nearest that works."""
    broken = list(_broken(config))
    yield from broken
    if broken:
        near = nearest_layout(config)
        if near:
            data = config.world_size // (near.tensor * near.pipe * near.trail)
            yield (
                f"the nearest layout that works on {config.world_size} ranks: parallel.tensor = {near.tensor}, "
                f"parallel.pipe = {near.pipe}, parallel.trail = {near.trail} (data degree {data})"
            )


def nearest_layout(config: Config) -> Parallel | None:
    """The layout of as many ranks that keeps all rules and changes the degrees by the smallest factors, if any does."""
    wanted = config.parallel

    def distance(layout: Parallel) -> float:
        pairs = ((layout.tensor, wanted.tensor), (layout.pipe, wanted.pipe), (layout.trail, wanted.trail))
        return sum(abs(math.log(new / old)) for new, old in pairs)

    layouts = [
        replace(wanted, tensor=tensor, pipe=pipe, trail=trail)
        for tensor in _divisors(config.world_size)
        for pipe in _divisors(config.world_size // tensor)
        for trail in _divisors(config.world_size // (tensor * pipe))
    ]
    configs = [replace(config, parallel=layout) for layout in layouts]
    working = [each.parallel for each in configs if is_possible(each)]
    return min(working, key=distance, default=None)


def is_possible(config: Config) -> bool:
    """Say whether the model, the batch and the ZeRO stage can be dealt out to the ranks as the degrees say."""
    batch, unit = config.train.batch_size, config.train.micro_batch_size * config.data_degree
    return batch % unit == 0 and not any(_broken(config))


def _broken(config: Config) -> Iterator[str]:
    degrees, num_layers = config.parallel, config.model.num_layers
    if config.world_size % config.model_degree:
        yield (
            f"parallel.tensor × pipe × trail = {degrees.tensor} × {degrees.pipe} × {degrees.trail} must divide "
            f"the number of ranks, {config.world_size}"
        )
    divided_by_tensor = config.family.divided_by_tensor(config)
    divided_by_tensor["sparsity.topology_shards"] = config.sparsity.topology_shards
    for name, size in divided_by_tensor.items():
        if size % degrees.tensor:
            yield f"parallel.tensor = {degrees.tensor} must divide {name} = {size}"
    if config.trails.count % degrees.trail:
        yield f"parallel.trail = {degrees.trail} must divide trails.count = {config.trails.count}"
    if config.splits_trunk and config.train.micro_batch_size % degrees.trail:
        size = config.train.micro_batch_size
        near = nearest_numbers(size, lambda size: size % degrees.trail == 0)
        yield (
            f"parallel.trunk = 'split' deals a micro-batch out to the trail ranks: parallel.trail = {degrees.trail} "
            f"must divide train.micro_batch_size = {size}; nearest: {near}"
        )
    if degrees.pipe > num_layers:
        yield f"parallel.pipe = {degrees.pipe} must be at most model.num_layers = {num_layers}"
    if degrees.pipe > 1 and config.zero_stage > 1:
        yield (
            f"parallel.pipe = {degrees.pipe} allows ZeRO stages 0 and 1 (a limit of DeepSpeed), not "
            f"zero_optimization.stage = {config.zero_stage} of the DeepSpeed JSON"
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
