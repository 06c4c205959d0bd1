"""What one rank holds of the table of weights: the layers of its pipeline stage, its trails, its topology shards.

Sizes only, from the config; nothing is built. The layers are those of model/trails.py's layer_names, the fork aside.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

from nt_dist.config import Config
from nt_dist.engine.stages import stage_bounds
from nt_dist.model.trails import FORK, layer_names
from nt_dist.model.weights import INDEX_BYTES, MASK_BYTES, choose_storages, weight_specs
from nt_dist.sparsity.spec import WeightSpec


@dataclass(frozen=True)
class Part:
    """The part of one weight that one rank holds.

    Attributes:
        spec: The weight.
        storage: "dense", "compact" or "masked".
        trails: Trails held.
        shards: Topology shards held; the first ones, which have the fewest padded entries.
    """

    spec: WeightSpec
    storage: str
    trails: int
    shards: int

    @property
    def entries(self) -> int:
        """Entries of the dense tensor."""
        return self.trails * self.spec.shard_elements * self.shards

    @property
    def slots(self) -> int:
        """Active entries."""
        return self.trails * _slots(self.spec, self.shards)

    @property
    def stored(self) -> int:
        """Values in the parameter."""
        return self.slots if self.storage == "compact" else self.entries

    @property
    def index_bytes(self) -> int:
        """Bytes that say where the active entries are."""
        return self.stored * {"compact": INDEX_BYTES, "masked": MASK_BYTES, "dense": 0}[self.storage]


@dataclass(frozen=True)
class LayerPart:
    """One layer of the model as one rank holds it.

    Attributes:
        kind: "embedding", "block" or "output".
        trails: Trails of its hidden state; 1 in the trunk.
        parts: Its weights.
        forks: Whether the fork comes right before it.
        batch_ranks: Ranks to which a micro-batch is dealt out in it: the trail degree in a split trunk, else 1.
        extra_flops: Forward operations of a token and trail beyond the weights' products, on this rank.
    """

    kind: str
    trails: int
    parts: tuple[Part, ...]
    forks: bool = False
    batch_ranks: int = 1
    extra_flops: float = 0.0

    @property
    def work(self) -> float:
        """Operations of one token's forward pass: 2 an entry of a matrix, and what the family adds."""
        return sum(2 * part.spec.uses * part.entries for part in self.parts) + self.trails * self.extra_flops


def layer_parts(config: Config) -> list[LayerPart]:
    """Return all layers in order, each as the first rank of the tensor and of the trail axis holds it."""
    specs = weight_specs(config)
    storages = choose_storages(config, specs)
    tensor, trail = config.parallel.tensor, config.parallel.trail
    by_layer: dict[str, list[Part]] = {}
    for name, spec in specs.items():
        trails = spec.trails // trail if spec.in_trail else spec.trails
        shards = spec.shards // tensor if spec.shards > 1 else 1
        by_layer.setdefault(spec.layer, []).append(Part(spec, storages[name], trails, shards))

    layers, before = [], None
    for name in layer_names(config):
        if name != FORK:
            parts = tuple(by_layer[name])
            in_trail = any(part.spec.in_trail for part in parts)
            batch_ranks = trail if config.splits_trunk and not in_trail else 1
            kind = "block" if name.startswith("blocks.") else name
            extra = config.family.extra_flops(config, name) / tensor
            trails = max(part.trails for part in parts)
            layers.append(LayerPart(kind, trails, parts, before == FORK, batch_ranks, extra))
        before = name
    return layers


def stage_layers(config: Config) -> list[list[LayerPart]]:
    """Return the layers of each pipeline stage."""
    return _stage_layers(_Sizes(config))


@lru_cache(maxsize=64)
def _stage_layers(sizes: "_Sizes") -> list[list[LayerPart]]:
    config = sizes.config
    layers = dict(zip((name for name in layer_names(config) if name != FORK), layer_parts(config), strict=True))
    names, bounds = layer_names(config), stage_bounds(config)
    return [[layers[name] for name in names[start:stop] if name != FORK] for start, stop in itertools.pairwise(bounds)]


class _Sizes:
    """A config that is equal to others with the same layers on each rank, to remember them by."""

    def __init__(self, config: Config):
        self.config = config
        train = (config.train.precision, config.train.micro_batch_size)
        ranks = (config.parallel, config.data_degree, config.zero_stage)
        self._key = repr((config.model, config.trails, config.sparsity, train, ranks))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sizes) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=65536)
def _slots(spec: WeightSpec, shards: int) -> int:
    return spec.total_slots(range(shards))


def local_parts(layers: list[LayerPart]) -> list[Part]:
    """Return the weights of some layers, in order."""
    return [part for layer in layers for part in layer.parts]
