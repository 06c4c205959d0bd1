"""A weight as it is stored: three storages behind one small interface (docs/design.md §2).

- ``compact``: ``values`` [trails, slots] are the active entries, ``index`` their flat places; the dense matrix
  exists only while a product needs it, and is built again in backward.
- ``masked``: ``values`` is dense with zeros, and its gradient is multiplied by a mask.
- ``dense``: no topology; what density 1 means.

All train the same model. Shapes: T trails and S shards held by this rank, ``slots`` active entries of one trail over
those shards (shard after shard, ascending within each), ``local_shape`` one trail's dense shape here.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.sparsity.spec import WeightSpec, block_positions, flat_index, padding_mask
from nt_dist.sparsity.streams import hash_positions, normal, stream_keys, uniform

STORAGES = ("dense", "compact", "masked")
Rows = list[tuple[int, int]]  # shards of single trails: (trail, shard), both global numbers
# Entries whose topology is worked on at once: on CPUs what stays in the caches, on GPUs what keeps one busy.
_ENTRIES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}


def rows_at_once(spec: WeightSpec, device_type: str) -> int:
    """Return how many shards of ``spec`` have their topology worked on at once."""
    return max(1, _ENTRIES_AT_ONCE.get(device_type, _ENTRIES_AT_ONCE["cpu"]) // spec.shard_elements)


class _Build(torch.autograd.Function):
    """The dense tensor from the stored values; backward keeps the gradients of active entries only."""

    @staticmethod
    def forward(ctx, values, weight):
        ctx.weight = weight
        return weight.build(values)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.weight.take_gradient(gradient), None


class _Linear(torch.autograd.Function):
    """x · Wᵀ for x [T, N, in], with W [T, out, in] built anew in backward instead of being kept.

    The Parameter itself is kept, not a saved tensor: under ZeRO 3 its data is gathered again before backward.
    """

    @staticmethod
    def forward(ctx, x, values, weight):
        ctx.save_for_backward(x)
        ctx.values, ctx.weight = values, weight
        return _multiply(x, weight.build(values).mT)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            dense = ctx.weight.build(ctx.values)
            grad_x = _multiply(gradient, dense)
        if ctx.needs_input_grad[1]:
            grad_values = ctx.weight.take_gradient(_multiply(gradient.mT, x), may_overwrite=True)
        return grad_x, grad_values, None


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the products [T, a, c] of matrices [T, a, b] and [T, b, c], without a gradient of their own.

    On CPUs one after the other: a batched product deals whole matrices out to the threads, three to two for instance.
    """
    if left.device.type != "cpu":
        return torch.bmm(left, right)
    product = left.new_empty(len(left), left.shape[1], right.shape[2])
    for each in zip(left, right, product, strict=True):
        torch.mm(each[0], each[1], out=each[2])
    return product


class Weight(nn.Module):
    """One weight of the model, or the part of it that this rank holds.

    Args:
        spec: What the weight is.
        storage: "dense", "compact" or "masked".
        trails: Global numbers of the trails held here (all by default).
        shards: Global numbers of the topology shards held here (all by default).
        device: Where the tensors are made; :meth:`reset` fills them.
        dtype: Type of the values.
    """

    def __init__(
        self,
        spec: WeightSpec,
        storage: str,
        trails: range | None = None,
        shards: range | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        assert storage in STORAGES, storage
        assert spec.is_sparse or storage == "dense", f"{spec.name}: density 1 is stored dense"
        self.spec = spec
        self.storage = storage
        self.trails = range(spec.trails) if trails is None else trails
        self.shards = range(spec.shards) if shards is None else shards
        self.local_shape = spec.local_shape(self.shards)
        self.collecting = False
        self.dense_gradient: torch.Tensor | None = None
        num_slots = spec.total_slots(self.shards)
        shape = (len(self.trails), num_slots) if storage == "compact" else (len(self.trails), *self.local_shape)
        self.values = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("index", None)
        self.register_buffer("mask", None)
        if storage == "compact":
            self.index = torch.empty(shape, dtype=torch.int32, device=device)
        if storage == "masked":
            self.mask = torch.empty(shape, dtype=torch.bool, device=device)

    # -- sizes --------------------

    @property
    def num_slots(self) -> int:
        """Active entries of one trail held here."""
        return self.spec.total_slots(self.shards)

    @property
    def dense_elements(self) -> int:
        """Entries of the dense tensor, over the trails held here."""
        return len(self.trails) * math.prod(self.local_shape)

    @property
    def active_elements(self) -> int:
        """Active entries, over the trails held here."""
        return len(self.trails) * self.num_slots

    def slot_ranges(self) -> list[tuple[int, int, int]]:
        """Return (shard, start, stop) of each local shard's slots."""
        ranges, start = [], 0
        for shard in self.shards:
            ranges.append((shard, start, start + self.spec.slots(shard)))
            start = ranges[-1][2]
        return ranges

    def slot_start(self, shard: int) -> int:
        """Return where the slots of ``shard`` (a global number) begin."""
        return self.spec.total_slots(range(self.shards.start, shard))

    # -- initial state --------------------

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw the initial topology and values from the streams of ``seed``."""
        device = self.values.device
        values = torch.empty(len(self.trails), self.num_slots, dtype=torch.float32, device=device)
        index = torch.empty(len(self.trails), self.num_slots, dtype=torch.int64, device=device)
        for row, trail in enumerate(self.trails):
            for shard, start, stop in self.slot_ranges():
                words = (self.spec.name, trail, shard)
                positions = self._first_positions(seed, shard, words, device)
                index[row, start:stop] = flat_index(self.spec, self.shards, shard, positions)
                if self.spec.init is None:
                    values[row, start:stop] = 1.0
                else:
                    key = stream_keys([(seed, "init value", *words)], device)
                    values[row, start:stop] = (normal(key, positions) * self.spec.init).float()
        self.set_index(index)
        self.values.data.copy_(self.from_slots(values))

    def _first_positions(self, seed: int, shard: int, words: tuple, device) -> torch.Tensor:
        everywhere = torch.arange(self.spec.shard_elements, device=device)
        if not self.spec.is_sparse:
            return everywhere
        score = uniform(stream_keys([(seed, "init topology", *words)], device), everywhere)
        padding = padding_mask(self.spec, shard, device)
        if padding is not None:
            score[padding] = -1.0
        return score.topk(self.spec.slots(shard)).indices.sort().values

    # -- slots: the active entries of any tensor shaped like ``values`` --------------------

    def slot_index(self) -> torch.Tensor:
        """Return each slot's flat place in its trail's local dense tensor: int64 [T, slots]."""
        if self.storage == "compact":
            return self.index.long()
        parts = [
            flat_index(self.spec, self.shards, shard, self.row_positions([(trail, shard) for trail in self.trails]))
            for shard in self.shards
        ]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def set_index(self, index: torch.Tensor) -> None:
        """Make the entries at ``index`` (integers [T, slots], in slot order) the active ones; values are left alone."""
        if self.storage == "compact":
            self.index.copy_(index)
        if self.storage == "masked":
            self.mask.zero_()
            self.mask.view(len(self.trails), -1).scatter_(1, index.long(), True)

    def to_slots(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the active entries [T, slots] of a tensor shaped like ``values``."""
        return self.all_to_slots([tensor])[0]

    def all_to_slots(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return :meth:`to_slots` of each tensor; where the active entries are is found out once."""
        if self.storage == "compact":
            return list(tensors)
        index = self.slot_index()
        return [tensor.reshape(len(self.trails), -1).gather(1, index) for tensor in tensors]

    def from_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Return a tensor shaped like ``values`` with the active entries ``slots`` [T, slots], 0 elsewhere."""
        if self.storage == "compact":
            return slots
        dense = slots.new_zeros(len(self.trails), math.prod(self.local_shape))
        return dense.scatter_(1, self.slot_index(), slots).view(len(self.trails), *self.local_shape)

    def slot_positions(self) -> torch.Tensor:
        """Return each slot's position in its own shard: int64 [T, slots]."""
        return block_positions(self.spec, self.shards, self.slot_index())

    # -- shards of single trails, by global numbers: what checkpoints hold, what updates work on --------------------

    def positions(self, trail: int, shard: int) -> torch.Tensor:
        """Return the active positions of one shard, ascending: int32 [slots(shard)]."""
        return self.row_positions([(trail, shard)])[0].int()

    def fragment(self, slots: torch.Tensor, trail: int, shard: int) -> torch.Tensor:
        """Return one shard's part [slots(shard)] of ``slots`` [T, slots] (see :meth:`to_slots`), as a view."""
        start = self.slot_start(shard)
        return slots[trail - self.trails.start, start : start + self.spec.slots(shard)]

    def row_groups(self) -> Iterator[Rows]:
        """Yield all shards of all trails held here: those of equal slots and padding together, some at a time."""
        alike: dict[tuple[int, int], Rows] = defaultdict(list)
        for shard in self.shards:
            alike[self.spec.slots(shard), self.spec.real_length(shard)] += [(trail, shard) for trail in self.trails]
        count = rows_at_once(self.spec, self.values.device.type)
        for rows in alike.values():
            yield from (rows[start : start + count] for start in range(0, len(rows), count))

    def row_positions(self, rows: Rows) -> torch.Tensor:
        """Return the active positions of R shards of equally many slots, ascending: int64 [R, slots]."""
        if self.storage == "compact":
            flat = torch.stack([self.fragment(self.index, *row) for row in rows]).long()
            return block_positions(self.spec, self.shards, flat)
        if self.storage == "masked":
            return self.row_blocks(self.mask, rows).nonzero()[:, 1].view(len(rows), -1)
        return torch.arange(self.spec.shard_elements, device=self.values.device).expand(len(rows), -1)

    def row_blocks(self, dense: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return shards of a dense tensor [T, *local_shape], flattened: [R, shard_elements]."""
        return torch.stack([self._shard_of(dense, *row).reshape(-1) for row in rows])

    def read_rows(self, tensor: torch.Tensor, rows: Rows, positions: torch.Tensor) -> torch.Tensor:
        """Return the active entries [R, slots] of a tensor shaped like ``values``, at the rows' ``positions``."""
        if self.storage == "compact":
            return torch.stack([self.fragment(tensor, *row) for row in rows])
        return self.row_blocks(tensor, rows).gather(1, positions)

    def write_rows(self, tensor: torch.Tensor, rows: Rows, positions: torch.Tensor, slots: torch.Tensor) -> None:
        """Put ``slots`` [R, slots] into a tensor shaped like ``values``; what else it has in these shards becomes 0."""
        for row, places, entries in zip(rows, positions, slots, strict=True):
            if self.storage == "compact":
                self.fragment(tensor, *row).copy_(entries)
            else:
                part = self._shard_of(tensor, *row)
                block = entries.new_zeros(self.spec.shard_elements).scatter_(0, places, entries)
                part.copy_(block.view(part.shape))

    def set_rows(self, rows: Rows, positions: torch.Tensor) -> None:
        """Make ``positions`` [R, slots], ascending, the active ones of these shards; values are left alone."""
        if self.storage == "compact":
            for row, places in zip(rows, positions, strict=True):
                self.fragment(self.index, *row).copy_(flat_index(self.spec, self.shards, row[1], places))
        if self.storage == "masked":
            self.write_rows(self.mask, rows, positions, torch.ones_like(positions, dtype=torch.bool))

    def _shard_of(self, dense: torch.Tensor, trail: int, shard: int) -> torch.Tensor:
        """Return the view of one shard of one trail in a dense tensor [T, *local_shape]."""
        length = self.spec.shard_length
        return dense[trail - self.trails.start].narrow(self.spec.cut_axis, (shard - self.shards.start) * length, length)

    # -- the dense tensor --------------------

    def build(self, values: torch.Tensor) -> torch.Tensor:
        """Return the dense tensor [T, *local_shape] of ``values``, without a gradient of its own."""
        if self.storage != "compact":
            return values.detach()
        dense = values.new_zeros(len(self.trails), math.prod(self.local_shape))
        for row, index, entries in zip(dense, self.index, values.detach(), strict=True):
            row.scatter_(0, index.long(), entries)  # by int32 it is several times slower on CPUs
        return dense.view(len(self.trails), *self.local_shape)

    def take_gradient(self, dense: torch.Tensor, may_overwrite: bool = False) -> torch.Tensor:
        """Turn a dense gradient [T, *local_shape] into that of ``values``; keep the dense one while collecting.

        Args:
            dense: The gradient.
            may_overwrite: Whether nobody else needs ``dense``, so that the result may take its place.
        """
        if self.collecting:
            if self.dense_gradient is None:
                self.dense_gradient = dense.float() if dense.dtype != torch.float32 else dense.clone()
            else:
                self.dense_gradient += dense
        if self.storage == "compact":
            taken = dense.new_empty(self.index.shape)
            for row, index, out in zip(dense.flatten(1), self.index, taken, strict=True):
                torch.index_select(row, 0, index, out=out)
            return taken
        if self.storage == "masked":
            bits = self.mask.view(torch.uint8)  # a product with bool is several times slower on CPUs
            return dense.mul_(bits) if may_overwrite else dense * bits
        return dense

    def drop_gradient(self) -> None:
        """Forget the collected dense gradient."""
        self.dense_gradient = None

    def dense(self) -> torch.Tensor:
        """Return the dense tensor [T, *local_shape], differentiable in ``values``; for any operation."""
        return self.values if self.storage == "dense" else _Build.apply(self.values, self)

    def forward(self, x: torch.Tensor, scaled: Callable[..., torch.Tensor] = torch.mul) -> torch.Tensor:
        """Apply the weight in its role.

        linear: x [T or 1, batch, sequence, in] → [T, batch, sequence, out].
        lookup: row numbers [batch, sequence] → [T, batch, sequence, width]; numbers outside the local rows give 0.
        scale: x [T, batch, sequence, width], times the values, or what ``scaled`` makes of x and [T, 1, 1, width].
        """
        if self.spec.role == "scale":
            return scaled(x, self.dense()[:, None, None, :])
        if self.spec.role == "lookup":
            return self._look_up(x)
        batch = x.shape[1:-1]
        rows = x.expand(len(self.trails), *x.shape[1:]).flatten(1, 2)
        return _Linear.apply(rows, self.values, self).unflatten(1, batch)

    def _look_up(self, numbers: torch.Tensor) -> torch.Tensor:
        table, num_rows = self.dense(), self.local_shape[0]
        outside = (numbers < 0) | (numbers >= num_rows)
        inside = numbers.masked_fill(outside, 0)
        rows = torch.stack([F.embedding(inside, each) for each in table])  # [T, B, S, width]
        if num_rows == self.spec.shape[0]:
            return rows
        return rows.masked_fill(outside[None, :, :, None], 0.0)

    # -- consistency --------------------

    @torch.no_grad()
    def checksum(self) -> torch.Tensor:
        """Return one checksum of the topology per trail and shard: int64 [T, S]; 0 for a dense weight."""
        sums = torch.zeros(len(self.trails), len(self.shards), dtype=torch.int64, device=self.values.device)
        if self.storage != "dense":
            key = torch.zeros(1, dtype=torch.int64, device=self.values.device)
            for rows in self.row_groups():
                hashes = hash_positions(key, self.row_positions(rows)).sum(1)
                for (trail, shard), each in zip(rows, hashes, strict=True):
                    sums[trail - self.trails.start, shard - self.shards.start] = each
        return sums

    def extra_repr(self) -> str:
        """Say what is stored, for ``print(model)``."""
        return f"{self.spec.name} {tuple(self.values.shape)}, {self.storage}, density {self.spec.density:.3f}"
