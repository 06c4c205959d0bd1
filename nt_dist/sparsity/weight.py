"""A weight of the model, whatever way it is stored (docs/design.md §2).

Only the active entries of a sparse weight count: its *slots*. What a storage has to say about them is the first part of
:class:`Weight`; everything else follows from it. All storages train the same model.

Shapes: T trails and S shards held by this rank, ``slots`` active entries of one trail over those shards (shard after
shard, ascending within each), ``local_shape`` one trail's dense shape here. A *fragment* is one shard of one trail; R
of equally many slots are worked on together. A *position* counts inside one shard, flattened in row-major order; a
*flat index* counts inside one trail's dense tensor as this rank holds it.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn

from nt_dist.sparsity.groups import Groups
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.statistic import LocalState
from nt_dist.sparsity.streams import hash_positions, normal, stream_keys, uniform

# (trail, shard), both global numbers: some adjacent shards of each of some adjacent trails, trail after trail
Fragments = list[tuple[int, int]]
ALL = slice(None)  # the trails held here
# Entries whose topology is worked on at once: on CPUs what stays in the caches, on GPUs what keeps one busy.
_ENTRIES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}


def fragments_at_once(spec: WeightSpec, device_type: str) -> int:
    """Return how many fragments of ``spec`` have their topology worked on at once."""
    return max(1, _ENTRIES_AT_ONCE.get(device_type, _ENTRIES_AT_ONCE["cuda"]) // spec.shard_elements)


def flat_index(spec: WeightSpec, shards: range, shard: int | torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return where ``positions`` of ``shard`` lie in one trail's dense tensor on a rank that holds ``shards``.

    ``shard`` may be a tensor that is broadcast to them.
    """
    inner = math.prod(spec.shape[spec.cut_axis + 1 :])
    block = spec.shard_length * inner
    if spec.cut_axis == 0:
        return positions + (shard - shards.start) * block
    outer, rest = positions // block, positions % block
    return outer * (block * len(shards)) + (shard - shards.start) * block + rest


def block_positions(spec: WeightSpec, shards: range, flat: torch.Tensor) -> torch.Tensor:
    """Invert :func:`flat_index` for entries that are known to lie in one shard: flat indices to positions."""
    inner = math.prod(spec.shape[spec.cut_axis + 1 :])
    block = spec.shard_length * inner
    if spec.cut_axis == 0:
        return flat % block
    outer, rest = flat // (block * len(shards)), flat % block
    return outer * block + rest


def padding_mask(spec: WeightSpec, shard: int, device: torch.device | str = "cpu") -> torch.Tensor | None:
    """Return a bool mask [shard_elements] of the padded entries of ``shard``, or None if there are none."""
    real = spec.real_length(shard)
    if real == spec.shard_length:
        return None
    mask = torch.zeros(spec.shape_of(spec.shard_length), dtype=torch.bool, device=device)
    mask.narrow(spec.cut_axis, real, spec.shard_length - real).fill_(True)
    return mask.flatten()


class Weight(LocalState, ABC):
    """One weight of the model, or the part of it that this rank holds; each storage is a subclass."""

    def __init__(
        self,
        spec: WeightSpec,
        trails: range | None = None,
        shards: range | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(spec, trails, shards)
        self.collecting = False
        self.dense_gradient: torch.Tensor | None = None
        shape = (len(self.trails), *self.value_shape(spec, self.shards))
        self.values = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))  # which :meth:`reset` fills

    # -- what a storage has to say -----------------------------------------------------------------------------------

    name: ClassVar[str]
    """As ``sparsity.storage`` gives it."""
    index_bytes: ClassVar[int]
    """Bytes for each value that say where the active entries are."""
    search_bytes: ClassVar[int] = 0
    """Bytes for each slot that :meth:`active` needs besides its result."""
    copies: ClassVar[tuple[int, int]]
    """Elements that exist while a backward product runs: for each dense entry, and for each slot."""

    @classmethod
    def fits(cls, spec: WeightSpec) -> bool:
        """Whether a sparse weight can be stored in this way."""
        return True

    @staticmethod
    def moved_bytes(entries: int, slots: int, element: int, builds: float) -> float:
        """Return the bytes read and written to build the dense tensor so often and to take its gradient once."""
        return 0

    @staticmethod
    @abstractmethod
    def value_shape(spec: WeightSpec, shards: range) -> tuple[int, ...]:
        """Shape of one trail's ``values``, of its gradient and of the optimizer's state."""

    @abstractmethod
    def build(self, values: torch.Tensor, rows: slice = ALL) -> torch.Tensor:
        """Return the dense tensor [rows, *local_shape] of the values [rows, …] of some of the trails held here.

        It has no gradient of its own.
        """

    @abstractmethod
    def gradient_of(self, dense: torch.Tensor, may_overwrite: bool, rows: slice = ALL) -> torch.Tensor:
        """Return the gradient of these trails' values for that of their dense tensor.

        It may take that one's place if allowed.
        """

    @abstractmethod
    def active(self, fragments: Fragments) -> torch.Tensor:
        """Return the active positions of R fragments, ascending: int64 [R, slots]."""

    @abstractmethod
    def set_active(self, fragments: Fragments, positions: torch.Tensor) -> None:
        """Make ``positions`` [R, slots], ascending, the active ones; values are left alone."""

    @abstractmethod
    def read(self, tensor: torch.Tensor, fragments: Fragments, positions: torch.Tensor) -> torch.Tensor:
        """Return the active entries [R, slots], at ``positions``, of a tensor shaped like ``values``."""

    @abstractmethod
    def write(self, tensor: torch.Tensor, fragments: Fragments, positions: torch.Tensor, slots: torch.Tensor) -> None:
        """Put ``slots`` [R, slots] into a tensor shaped like ``values``; what else it has there becomes 0."""

    # -- products ----------------------------------------------------------------------------------------------------

    def forward(self, product: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Return ``product(self, *inputs)``. ZeRO 3 has the values here only during this call and its backward pass."""
        return product(self, *inputs)

    def linear(self, device: torch.device) -> type[torch.autograd.Function] | None:
        """Return what computes x · Wᵀ there, of (x [T, N, in], values, weight, is_turned) -> [T, N, out], where the
        storage has a faster way than to build W."""
        return None

    def convolution(self, device: torch.device) -> type[torch.autograd.Function] | None:
        """Return what convolves there, of (a trail's values, weight, its row, stride, x [B, in, H, W]), where the
        storage has a faster way than to build W."""
        return None

    def keep_built(self, keeps: bool) -> None:
        """From now on build the dense tensor only once; or forget it, which has to come before values change."""

    def dense(self) -> torch.Tensor:
        """Return the dense tensor [T, *local_shape], differentiable in ``values``; for any operation."""
        return _Build.apply(self.values, self)

    def take_gradient(self, dense: torch.Tensor, may_overwrite: bool = False, rows: slice = ALL) -> torch.Tensor:
        """Turn a dense gradient [rows, *local_shape] into that of ``values``; keep the dense one while collecting.

        The result may take the place of ``dense`` where nobody else needs it.
        """
        if self.collecting:
            self.collect(dense, rows)
        return self.gradient_of(dense, may_overwrite, rows)

    def collect(self, dense: torch.Tensor, rows: slice = ALL) -> None:
        """Add to the dense gradient [T, *local_shape] that says where to regrow."""
        if self.dense_gradient is None:
            shape = (len(self.trails), *self.local_shape)
            self.dense_gradient = torch.zeros(shape, dtype=torch.float32, device=dense.device)
        self.dense_gradient[rows] += dense

    # -- sizes -------------------------------------------------------------------------------------------------------

    @classmethod
    def stored_bytes(cls, spec: WeightSpec, per_value: float) -> float:
        """Return what one trail costs a rank that holds all shards, where a value costs it ``per_value`` bytes."""
        return math.prod(cls.value_shape(spec, range(spec.shards))) * (per_value + cls.index_bytes)

    @property
    def num_slots(self) -> int:
        """Active entries of one trail held here."""
        return self.spec.total_slots(self.shards)

    @property
    def active_elements(self) -> int:
        """Active entries, over the trails held here."""
        return len(self.trails) * self.num_slots

    # -- initial state -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw the initial topology and values from the streams of ``seed``."""
        for trail, shard in itertools.product(self.trails, self.shards):
            words = (self.spec.name, trail, shard)
            positions = self._first_positions(seed, shard, words)
            if self.spec.init is None:
                values = torch.ones(positions.shape, device=positions.device)
            else:
                key = stream_keys([(seed, "init value", *words)], positions.device)
                values = (normal(key, positions) * self.spec.init).float()
            self.set_active([(trail, shard)], positions[None])
            self.write(self.values.data, [(trail, shard)], positions[None], values[None])

    def _first_positions(self, seed: int, shard: int, words: tuple) -> torch.Tensor:
        device = self.values.device
        everywhere = torch.arange(self.spec.shard_elements, device=device)
        if not self.spec.is_sparse:
            return everywhere
        if self.spec.group:
            groups = Groups.of(self.spec, shard, device)
            count, active = groups.units
            units = torch.arange(count, device=device).expand(groups.count, -1)
            keys = stream_keys([(seed, "init topology", *words, group) for group in range(groups.count)], device)
            chosen = uniform(keys[:, None], units).topk(active, dim=1).indices.sort(dim=1).values
            return groups.positions(groups.spread(chosen[None]))[0]
        score = uniform(stream_keys([(seed, "init topology", *words)], device), everywhere)
        padding = padding_mask(self.spec, shard, device)
        if padding is not None:
            score[padding] = -1.0
        return score.topk(self.spec.slots(shard)).indices.sort().values

    # -- slots of all that is held here: what checkpoints read and write ---------------------------------------------

    def by_shard(self) -> Iterator[tuple[Fragments, slice]]:
        """Yield the fragments of each shard, and where its slots lie among all."""
        stop = 0
        for shard in self.shards:
            start, stop = stop, stop + self.spec.slots(shard)
            yield [(trail, shard) for trail in self.trails], slice(start, stop)

    def slot_positions(self) -> torch.Tensor:
        """Return each slot's position in its own shard: int64 [T, slots]."""
        return torch.cat([self.active(fragments) for fragments, _ in self.by_shard()], dim=1)

    def slot_index(self) -> torch.Tensor:
        """Return each slot's flat place in its trail's local dense tensor: int64 [T, slots]."""
        parts = [(fragments[0][1], self.active(fragments)) for fragments, _ in self.by_shard()]
        return torch.cat([flat_index(self.spec, self.shards, shard, each) for shard, each in parts], dim=1)

    @torch.no_grad()
    def set_positions(self, positions: torch.Tensor) -> None:
        """Make ``positions``, as :meth:`slot_positions` gives them, the active ones; values are left alone."""
        for fragments, where in self.by_shard():
            self.set_active(fragments, positions[:, where])

    def to_slots(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the active entries [T, slots] of a tensor shaped like ``values``."""
        return self.all_to_slots([tensor])[0]

    def all_to_slots(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return :meth:`to_slots` of each tensor; where the active entries are is found out once."""
        parts = []
        for fragments, _ in self.by_shard():
            positions = self.active(fragments)
            parts.append([self.read(tensor, fragments, positions) for tensor in tensors])
        return [torch.cat(part, dim=1) for part in zip(*parts, strict=True)]

    def from_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Return a tensor shaped like ``values`` with the active entries ``slots`` [T, slots], 0 elsewhere."""
        tensor = slots.new_empty(len(self.trails), *self.value_shape(self.spec, self.shards))
        for fragments, where in self.by_shard():
            self.write(tensor, fragments, self.active(fragments), slots[:, where])
        return tensor

    # -- fragments ---------------------------------------------------------------------------------------------------

    def positions(self, trail: int, shard: int) -> torch.Tensor:
        """Return the active positions of one fragment, ascending: int32 [slots(shard)]."""
        return self.active([(trail, shard)])[0].int()

    def fragment(self, slots: torch.Tensor, trail: int, shard: int) -> torch.Tensor:
        """Return one fragment's part [slots(shard)] of ``slots`` [T, slots], as a view."""
        start = self.spec.total_slots(range(self.shards.start, shard))
        return slots[trail - self.trails.start, start : start + self.spec.slots(shard)]

    def region(self, fragments: Fragments) -> tuple[slice, slice]:
        """Return which of the trails and of the shards held here ``fragments`` are."""
        (trail, shard), (last_trail, last_shard) = fragments[0], fragments[-1]
        rows = slice(trail - self.trails.start, last_trail + 1 - self.trails.start)
        columns = slice(shard - self.shards.start, last_shard + 1 - self.shards.start)
        assert len(fragments) == (rows.stop - rows.start) * (columns.stop - columns.start), fragments
        return rows, columns

    def cells(self, dense: torch.Tensor, fragments: Fragments) -> torch.Tensor:
        """Return fragments of a dense tensor [T, *local_shape] as a view [trails, shards, *shape of a shard]."""
        axis = 1 + self.spec.cut_axis
        return dense.unflatten(axis, (len(self.shards), -1)).movedim(axis, 1)[self.region(fragments)]

    def blocks(self, dense: torch.Tensor, fragments: Fragments) -> torch.Tensor:
        """Return fragments of a dense tensor [T, *local_shape], flattened: [R, shard_elements], a view if need be."""
        return self.cells(dense, fragments).flatten(2).flatten(0, 1)

    def runs(self, slots: torch.Tensor, fragments: Fragments) -> torch.Tensor:
        """Return fragments of ``slots`` [T, slots], which have equally many, as a view [trails, shards, slots]."""
        rows, columns = self.region(fragments)
        first, count = fragments[0][1], columns.stop - columns.start
        start, each = self.spec.total_slots(range(self.shards.start, first)), self.spec.slots(first)
        return slots[rows, start : start + count * each].unflatten(1, (count, each))

    def groups(self) -> Iterator[Fragments]:
        """Yield all fragments held here: those of equal slots and padding together, some at a time."""
        at_once, trails = fragments_at_once(self.spec, self.values.device.type), len(self.trails)
        width, height = max(1, at_once // trails), min(trails, at_once)
        for _, alike in itertools.groupby(
            self.shards, lambda shard: (self.spec.slots(shard), self.spec.real_length(shard))
        ):
            shards = list(alike)
            for column, row in itertools.product(range(0, len(shards), width), range(0, trails, height)):
                some = self.trails[row : row + height], shards[column : column + width]
                yield list(itertools.product(*some))

    @torch.no_grad()
    def checksum(self) -> torch.Tensor:
        """Return one checksum of the topology per trail and shard: int64 [T, S]; 0 for a dense weight."""
        sums = torch.zeros(len(self.trails), len(self.shards), dtype=torch.int64, device=self.values.device)
        if self.spec.is_sparse:
            key = torch.zeros(1, dtype=torch.int64, device=self.values.device)
            for fragments in self.groups():
                part = sums[self.region(fragments)]
                part.copy_(hash_positions(key, self.active(fragments)).sum(1).view(part.shape))
        return sums


class _Build(torch.autograd.Function):
    """The dense tensor from the stored values; backward keeps the gradients of active entries only."""

    @staticmethod
    def forward(ctx, values, weight):
        ctx.weight = weight
        return weight.build(values)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.weight.take_gradient(gradient), None
