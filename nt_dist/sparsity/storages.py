"""The storages of a weight: classes behind one interface, :class:`nt_dist.sparsity.weight.Weight`.

- ``dense``: no topology; what density 1 means.
- ``masked``: ``values`` is dense with zeros, and its gradient is multiplied by a mask.
- ``compact``: ``values`` [T, slots] are the active entries, ``index`` their flat places; the dense tensor exists only
  while a product needs it.
- ``grouped``: compact, with one place for a group of outputs that share their inputs; products by groups.

What each method is for is said there.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from nt_dist.sparsity.grouped import Piece, product_on
from nt_dist.sparsity.grouped_convolution import GroupedConvolution
from nt_dist.sparsity.groups import Groups
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.weight import ALL, Fragments, Weight, block_positions, flat_index

if TYPE_CHECKING:
    from nt_dist.kernels.groups import Tiles

# Slots whose places are made int64 at once to build dense tensors: on CPUs a trail's, on GPUs those of many trails.
_SLOTS_AT_ONCE = {"cpu": 0, "cuda": 1 << 24}
_PAYS = 0.6  # up to this density a product by groups of 64 takes less time than a dense one


class _DenseShaped(Weight):
    """``values`` has a place for every entry."""

    @staticmethod
    def value_shape(spec, shards):
        return spec.local_shape(shards)

    def build(self, values, rows=ALL):
        return values.detach()

    def read(self, tensor, fragments, positions):
        return self.blocks(tensor, fragments).gather(1, positions)

    def write(self, tensor, fragments, positions, slots):
        cells = self.cells(tensor, fragments)
        whole = slots.new_zeros(len(fragments), self.spec.shard_elements).scatter_(1, positions, slots)
        cells.copy_(whole.view(cells.shape))


class DenseWeight(_DenseShaped):
    """All entries are active."""

    name, index_bytes, copies = "dense", 0, (1, 0)

    @classmethod
    def fits(cls, spec):
        return not spec.is_sparse

    def __init__(self, spec, *args, **kwargs):
        assert not spec.is_sparse, f"{spec.name}: density {spec.density}"
        super().__init__(spec, *args, **kwargs)

    def dense(self):
        return self.values

    def gradient_of(self, dense, may_overwrite, rows=ALL):
        return dense

    def active(self, fragments):
        return torch.arange(self.spec.shard_elements, device=self.values.device).expand(len(fragments), -1)

    def set_active(self, fragments, positions):
        pass  # all are


class MaskedWeight(_DenseShaped):
    """Zeros where a bool ``mask`` [T, *local_shape] is False."""

    name, index_bytes, search_bytes, copies = "masked", 1, 12, (2, 0)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.empty(self.values.shape, dtype=torch.bool, device=self.values.device))

    @staticmethod
    def moved_bytes(entries, slots, element, builds):
        """The gradient is read and written, the mask read."""
        return (2 * element + 1) * entries

    def gradient_of(self, dense, may_overwrite, rows=ALL):
        bits = self.mask[rows].view(torch.uint8)  # a product with bool is several times slower on CPUs
        return dense.mul_(bits) if may_overwrite else dense * bits

    def active(self, fragments):
        return self.blocks(self.mask, fragments).nonzero()[:, 1].view(len(fragments), -1)

    def set_active(self, fragments, positions):
        self.write(self.mask, fragments, positions, torch.ones_like(positions, dtype=torch.bool))


class CompactWeight(Weight):
    """Active entries and their places, int32 ``index`` [T, slots]."""

    name, index_bytes, copies = "compact", 4, (1, 1)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("index", torch.empty(self.values.shape, dtype=torch.int32, device=self.values.device))
        self._built: dict[tuple, torch.Tensor] | None = None  # what is kept, by rows

    def keep_built(self, keeps):
        self._built = {} if keeps else None

    @staticmethod
    def value_shape(spec, shards):
        return (spec.total_slots(shards),)

    @staticmethod
    def moved_bytes(entries, slots, element, builds):
        """A build writes zeros, widens the index and scatters."""
        return builds * (element * entries + (20 + 2 * element) * slots) + (4 + 2 * element) * slots

    def build(self, values, rows=ALL):
        if self._built is None or torch.compiler.is_compiling():
            return self._build(values, rows)
        key = rows.start, rows.stop
        if key not in self._built:
            self._built[key] = self._build(values, rows)
        return self._built[key].detach()  # a tensor of its own, to which autograd may tie a graph

    def _build(self, values, rows):
        dense = values.new_zeros(len(values), math.prod(self.local_shape))
        slots = _SLOTS_AT_ONCE.get(dense.device.type, _SLOTS_AT_ONCE["cuda"])
        num_trails = max(1, slots // self.index.shape[1])
        parts = (each.split(num_trails) for each in (dense, self.index[rows], values.detach()))
        for some, index, entries in zip(*parts, strict=True):
            some.scatter_(1, index.long(), entries)  # by int32 it is several times slower on CPUs
        return dense.view(len(values), *self.local_shape)

    def gradient_of(self, dense, may_overwrite, rows=ALL):
        places = self.index[rows]
        taken = dense.new_empty(places.shape)
        for row, index, out in zip(dense.flatten(1), places, taken, strict=True):
            torch.index_select(row, 0, index, out=out)
        return taken

    def active(self, fragments):
        return block_positions(self.spec, self.shards, self.read(self.index, fragments, None).long())

    def set_active(self, fragments, positions):
        run = self.runs(self.index, fragments)
        shards = torch.arange(run.shape[1], device=run.device).repeat(run.shape[0])[:, None] + fragments[0][1]
        run.copy_(flat_index(self.spec, self.shards, shards, positions).view(run.shape))

    def read(self, tensor, fragments, positions):
        return self.runs(tensor, fragments).flatten(0, 1)

    def write(self, tensor, fragments, positions, slots):
        run = self.runs(tensor, fragments)
        run.copy_(slots.view(run.shape))


def _convolution_pays(spec: WeightSpec) -> bool:
    """Whether groups save time over a dense kernel on a CPU: gathering takes as long for few outputs as for many."""
    outputs = min(spec.group, spec.real_rows(0))
    if outputs < 64 or spec.shape[1] < 128:
        return False
    return spec.density <= (0.25 if outputs >= 128 or spec.shape[-1] == 1 else 0.12)


class GroupedWeight(CompactWeight):
    """Active entries as :class:`CompactWeight` has them; ``index`` are the groups' active inputs, int32 [T, units].

    Those are columns of a shard, shard after shard and group after group.
    """

    name, index_bytes = "grouped", 0  # a place takes 4 bytes for spec.group values

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._groups = [Groups.of(self.spec, shard, self.values.device) for shard in self.shards]
        counts = [each.count * each.active for each in self._groups]
        starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
        self._units = [slice(*ends) for ends in pairwise(starts)]
        self.index = self.index.new_empty(len(self.trails), starts[-1])

    @staticmethod
    def moved_bytes(entries, slots, element, builds):
        """Products by groups read the values where they are."""
        return 0

    @classmethod
    def fits(cls, spec):
        if spec.role == "convolution":
            return _convolution_pays(spec)
        return spec.group > 0 and spec.role == "linear" and spec.density <= _PAYS

    def linear(self, device):
        return product_on(device)

    def convolution(self, device):
        return GroupedConvolution if device.type == "cpu" else None

    def _build(self, values, rows):
        dense = values.new_zeros(len(values), *self.local_shape)
        for row, matrix, entries in zip(range(len(self.trails))[rows], dense, values.detach(), strict=True):
            for piece in self.pieces(row):
                matrix.flatten(1)[piece.rows].index_copy_(1, piece.columns.long(), piece.gather(entries))
        return dense

    def gradient_of(self, dense, may_overwrite, rows=ALL):
        taken = dense.new_empty(len(dense), self.num_slots)
        for row, matrix, entries in zip(range(len(self.trails))[rows], dense.flatten(2), taken, strict=True):
            for piece in self.pieces(row):
                piece.put(matrix[piece.rows].index_select(1, piece.columns), entries)
        return taken

    def active(self, fragments):
        groups = self._groups[fragments[0][1] - self.shards.start]
        units = self._units_of(fragments).flatten(0, 1)
        return groups.positions(units.long().view(len(fragments), groups.count, groups.active))

    def set_active(self, fragments, positions):
        groups = self._groups[fragments[0][1] - self.shards.start]
        units = self._units_of(fragments)
        units.copy_(groups.inputs(positions).view(units.shape))

    def _units_of(self, fragments: Fragments) -> torch.Tensor:
        """A view [trails, shards, units]."""
        rows, columns = self.region(fragments)
        units = self._units[columns]
        return self.index[rows, units[0].start : units[-1].stop].unflatten(1, (len(units), -1))

    def pieces(self, row: int) -> Iterator[Piece]:
        """Yield the row-th trail's groups: of shards that are cut along their inputs all together."""
        of_shards = [list(self._shard_pieces(row, number)) for number in range(len(self.shards))]
        if self.spec.cut_axis == 0:
            for pieces in of_shards:
                yield from pieces
            return
        for pieces in zip(*of_shards, strict=True):
            columns = torch.cat([each.columns + number * self.spec.columns for number, each in enumerate(pieces)])
            yield Piece(pieces[0].rows, columns, [each.parts[0] for each in pieces])

    def _shard_pieces(self, row: int, number: int) -> Iterator[Piece]:
        groups, units = self._groups[number], self.index[row, self._units[number]]
        start = self.spec.total_slots(self.shards[:number])
        first = number * self.spec.shard_length if self.spec.cut_axis == 0 else 0
        for group, columns in enumerate(units.view(groups.count, groups.active)):
            begin, end = group * groups.size, min((group + 1) * groups.size, groups.rows)
            where = slice(start + begin * groups.active, start + end * groups.active)
            yield Piece(slice(first + begin, first + end), columns, [(where, (end - begin, groups.active))])

    @cached_property
    def tiles(self) -> "Tiles":
        """What kernels need of the groups: of shards that are cut along their inputs each is a part of its tiles."""
        from nt_dist.kernels.groups import Tiles, tile_height

        height, by_rows = tile_height(self.spec.group), self.spec.cut_axis == 0
        parts = [[] for _ in range(1 if by_rows else len(self.shards))]
        for number, (groups, units) in enumerate(zip(self._groups, self._units, strict=True)):
            value, width = self.spec.total_slots(self.shards[:number]), groups.active
            first, shift = (number * self.spec.shard_length, 0) if by_rows else (0, number * self.spec.columns)
            for group in range(groups.count):
                end, unit = min((group + 1) * groups.size, groups.rows), units.start + group * width
                parts[0 if by_rows else number] += [
                    (first + row, min(height, end - row), value + row * width, width, unit, shift)
                    for row in range(group * groups.size, end, height)
                ]
        table = torch.tensor(parts, dtype=torch.int32, device=self.values.device)
        return Tiles(table.reshape(len(parts), len(parts[0]), 6), height, max(each.active for each in self._groups))


STORAGES = {each.name: each for each in (DenseWeight, MaskedWeight, CompactWeight, GroupedWeight)}
