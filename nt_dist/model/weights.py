"""THE table of the model's weights: names, shapes, what cuts them, densities, storages.

Sharding, checkpoints, plans and tests all read this one. Everything follows from the config's global shapes, never from
local modules.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType

from nt_dist.config.settings import Config
from nt_dist.sparsity.density import spread_density
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES


@lru_cache(maxsize=64)
def weight_specs(config: Config) -> Mapping[str, WeightSpec]:
    """Return every weight of the model by name, in the order in which the layers use them."""
    specs = [spec for spec in config.family.weights(config) if spec.role != "statistic"]
    sparse = {spec.name: (spec.real_shape, spec.trails) for spec in specs if _may_be_sparse(config, spec)}
    density = spread_density(sparse, config.sparsity.density, config.sparsity.distribution)
    size = config.sparsity.group_size if config.sparsity.structure != "entries" else 0
    block = size if config.sparsity.structure == "blocks" else 1

    def final(spec: WeightSpec) -> WeightSpec:
        group = 0 if spec.role == "lookup" or spec.name not in sparse else size
        spec = replace(spec, density=density.get(spec.name, spec.density), group=group, block=block if group else 1)
        power = 1.0 if spec.layer == config.family.output_layer else 0.5
        return spec if spec.init is None else replace(spec, init=spec.init / fan_in_ratio(config, spec) ** power)

    return MappingProxyType({spec.name: final(spec) for spec in specs})


def fan_in_ratio(config: Config, spec: WeightSpec) -> float:
    """Return a matrix' active inputs over those of a dense one at the width ``train.mup_base_hidden``; 1 without that.

    By the maximal update parametrization a matrix' variance of initial values and AdamW's rate fall with its inputs,
    and the last one's variance with their square (muP; Yang et al., arXiv 2203.03466, table 3); of a sparse one the
    active inputs count (Dey et al., arXiv 2405.15743). Lookups, norms and biases have one input at every width. The
    sizes inside blocks are taken to grow with the width, and those of attention heads to stay.
    """
    base = config.train.mup_base_hidden
    return spec.density * config.family.hidden_size(config) / base if base and spec.role == "linear" else 1.0


def _may_be_sparse(config: Config, spec: WeightSpec) -> bool:
    return not spec.is_vector and not any(fnmatchcase(spec.name, pattern) for pattern in config.sparsity.exempt)


def stored_density(config: Config) -> float:
    """Return what ``sparsity.density`` comes to: not quite that, for entries are whole, and each shard keeps one."""
    specs = [spec for spec in weight_specs(config).values() if _may_be_sparse(config, spec)]
    counts = _count(specs)
    return counts["stored"] / counts["dense"] if specs else 1.0


def _count(specs: Iterable[WeightSpec]) -> dict[str, int]:
    dense = {spec.name: math.prod(spec.real_shape) * spec.trails for spec in specs}
    stored = sum(spec.total_slots() * spec.trails if spec.is_sparse else dense[spec.name] for spec in specs)
    return {"stored": stored, "dense": sum(dense.values())}


def statistic_specs(config: Config) -> dict[str, WeightSpec]:
    """Return by name what the family's table has of state that is no weight: no parameters, always dense."""
    return {spec.name: spec for spec in config.family.weights(config) if spec.role == "statistic"}


def count_parameters(config: Config) -> dict[str, int]:
    """Count the model's parameters: those stored (active, without padding) and those of its dense shapes."""
    return _count(weight_specs(config).values())


def bytes_per_value(config: Config) -> float:
    """Return the bytes that one stored value costs a rank, at the config's precision and ZeRO stage.

    ZeRO stage s partitions over the data ranks: from 1 masters and moments, from 2 gradients, from 3 weights
    (Rajbhandari et al., arXiv 1910.02054, §3). Stage 0 steps the weights themselves: no masters. In bf16
    (always at stage 1 or above), gradients are accumulated in fp32.
    """
    weights, stage, ranks = config.element_bytes, config.zero_stage, config.data_degree
    gradients, optimizer = 4, 4 * (len(config.train.moments) + (stage >= 1))
    parts = (weights, 3), (gradients, 2), (optimizer, 1)
    return sum(size / (ranks if stage >= partitioned_from else 1) for size, partitioned_from in parts)


def choose_storages(config: Config) -> dict[str, str]:
    """Return each weight's storage: as ``sparsity.storage`` says, or for "auto" the one with fewer bytes on a rank."""
    per_value = bytes_per_value(config)
    candidates = STORAGES if config.sparsity.storage == "auto" else [config.sparsity.storage]

    def cheapest(spec: WeightSpec) -> str:
        fitting = [name for name in candidates if STORAGES[name].fits(spec)]
        return min(fitting, key=lambda name: STORAGES[name].stored_bytes(spec, per_value))

    return {name: cheapest(spec) if spec.is_sparse else "dense" for name, spec in weight_specs(config).items()}
