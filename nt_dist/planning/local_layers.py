"""What one rank holds of the model: the layers of its pipeline stage, its trails, its topology shards.

Sizes only, from the config; nothing is built. The layers are those of model/trails.py's layer_names, the fork aside.
What one keeps for backward is its family's to say; with activation checkpointing its residual blocks keep their input.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from nt_dist.config import Config
from nt_dist.config.family import LayerActivations
from nt_dist.engine.stages import stage_bounds
from nt_dist.model.chunks import num_chunks
from nt_dist.model.trails import FORK, layer_names
from nt_dist.model.weights import choose_storages, weight_specs
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES

_LOSS_BYTES = 12  # of a trail and position, fp32: highest logit, sum of exponentials, target's logit
_SMOOTHING_BYTES = 8  # likewise: sum and number of all classes' logits


@dataclass(frozen=True)
class Part:
    """The part of one weight that one rank holds."""

    spec: WeightSpec
    storage: str
    trails: int
    shards: int  # the first ones, which have the fewest padded entries

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
        return self.trails * math.prod(STORAGES[self.storage].value_shape(self.spec, range(self.shards)))

    @property
    def multiplied(self) -> int:
        """Entries that products multiply by."""
        return self.slots if self.storage == "grouped" else self.entries

    @property
    def built(self) -> int:
        """Entries of a dense copy that is no parameter."""
        return self.entries if self.storage == "compact" else 0

    @property
    def index_bytes(self) -> int:
        """Bytes that say where the active entries are."""
        return self.stored * STORAGES[self.storage].index_bytes


@dataclass(frozen=True)
class LayerPart:
    """One layer of the model as one rank holds it."""

    config: Config
    name: str
    parts: tuple[Part, ...]  # its weights
    positions: int  # of a micro-batch that it sees: in a split trunk this rank's share
    forks: bool  # whether the fork comes right before it
    is_first: bool  # of the model
    is_last: bool

    @cached_property
    def trails(self) -> int:
        """Trails of its hidden state; 1 in the trunk."""
        return max(part.trails for part in self.parts)

    @cached_property
    def activations(self) -> LayerActivations:
        """Its family's figures for a position and trail."""
        return self.config.family.activations(self.config, self.name)

    @property
    def work(self) -> float:
        """Operations of one position's forward pass: 2 an entry of a matrix, or an active one of a matrix with products
        of its own, and what the family adds."""
        extra = self.config.family.extra_flops(self.config, self.name) / self.config.parallel.tensor
        return sum(2 * part.spec.uses * part.multiplied for part in self.parts) + self.trails * extra

    def _bytes(self, each: int) -> int:
        return self.trails * self.positions * each

    @property
    def input_bytes(self) -> int:
        """Bytes that it reads of a micro-batch; samples, and what the trunk gives, are one tensor for all trails."""
        shared = self.trails if self.forks or self.is_first else 1
        return self._bytes(self.activations.input) // shared

    @property
    def received_bytes(self) -> int:
        """Bytes that a pipeline stage which begins with it receives: of a split trunk a share."""
        return self.input_bytes // (self.config.parallel.trail if self.forks and self.config.splits_trunk else 1)

    @property
    def kept_bytes(self) -> int:
        """Bytes that it keeps of a micro-batch for backward: its input alone if it is computed again."""
        return self.input_bytes + (0 if self.activations.recomputed else self._bytes(self.activations.inner))

    @property
    def recomputed_bytes(self) -> int:
        """Bytes while it is computed again in backward, its gradients included; 0 if it is not."""
        held = self.activations
        return self.input_bytes + self._bytes(held.inner + held.recomputed) if held.recomputed else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of the widest hidden state that it reads, expanded to its trails, or gives."""
        held = self.activations
        return self._bytes(held.input if self.is_last else max(held.input, held.output))

    @property
    def logits_bytes(self) -> int:
        """Bytes of a micro-batch's logits, of all trails held here; 0 before the last layer."""
        return self._bytes(self.activations.output) if self.is_last else 0

    @property
    def chunks(self) -> int:
        """In how many the losses of a micro-batch are computed; 0 before the last layer."""
        return num_chunks(self.logits_bytes // self.config.element_bytes, "cuda")

    @property
    def loss_passes(self) -> int:
        """How often the losses are computed: once more in backward where chunks have the trails' mean among them."""
        return 2 if self.chunks > 1 and self.config.trails.trained_mean else 1

    @property
    def all_reduced_bytes(self) -> int:
        """Bytes that the tensor ranks add up for a micro-batch."""
        mean, is_smoothed = self.config.trails.trained_mean, self.config.train.label_smoothing > 0
        passes = self.trails * (2 if is_smoothed and mean == "probabilities" else 1) + (mean == "logits")
        losses = _LOSS_BYTES * passes + is_smoothed * _SMOOTHING_BYTES * self.trails
        losses *= self.is_last * self.loss_passes
        return self._bytes(self.activations.all_reduced) + losses * self.positions

    @property
    def gathered_bytes(self) -> int:
        """Bytes of a whole hidden state, where it is gathered from the tensor ranks' shares."""
        return self._bytes(self.activations.gathered)

    @property
    def all_gathered_bytes(self) -> int:
        """Bytes of whole hidden states that the tensor ranks gather for a micro-batch."""
        return self._bytes(self.activations.all_gathered)

    @property
    def reduce_scattered_bytes(self) -> int:
        """Bytes of whole hidden states that they add up to shares of."""
        return self._bytes(self.activations.reduce_scattered)

    @property
    def joined_bytes(self) -> int:
        """Bytes that the trail ranks reduce of a micro-batch for their mean's loss: fp32 logits, or two figures."""
        logits = 4 * self.activations.output // self.config.element_bytes
        each = {"logits": logits, "probabilities": 8, "": 0}[self.config.trails.trained_mean]
        return each * self.positions * self.loss_passes if self.is_last else 0


@lru_cache(maxsize=64)
def layer_parts(config: Config) -> list[LayerPart]:
    """Return all layers in order, each as the first rank of the tensor and of the trail axis holds it."""
    storages, names = choose_storages(config), layer_names(config)
    tensor, trail = config.parallel.tensor, config.parallel.trail
    by_layer: dict[str, list[Part]] = {}
    for name, spec in weight_specs(config).items():
        trails = spec.trails // trail if spec.in_trail else spec.trails
        shards = spec.shards // tensor if spec.shards > 1 else 1
        by_layer.setdefault(spec.layer, []).append(Part(spec, storages[name], trails, shards))

    def layer(before: str | None, name: str) -> LayerPart:
        parts = tuple(by_layer[name])
        shares = trail if config.splits_trunk and not any(part.spec.in_trail for part in parts) else 1
        positions = config.train.micro_batch_size * config.family.positions(config) // shares
        return LayerPart(config, name, parts, positions, before == FORK, before is None, name == names[-1])

    return [layer(before, name) for before, name in zip([None, *names], names, strict=False) if name != FORK]


@lru_cache(maxsize=64)
def stage_layers(config: Config) -> list[list[LayerPart]]:
    """Return the layers of each pipeline stage."""
    layers = {layer.name: layer for layer in layer_parts(config)}
    names, bounds = layer_names(config), stage_bounds(config)
    return [[layers[name] for name in names[start:stop] if name != FORK] for start, stop in itertools.pairwise(bounds)]


@lru_cache(maxsize=65536)
def _slots(spec: WeightSpec, shards: int) -> int:
    return spec.total_slots(range(shards))


def local_parts(layers: list[LayerPart]) -> list[Part]:
    """Return the weights of some layers, in order."""
    return [part for layer in layers for part in layer.parts]
