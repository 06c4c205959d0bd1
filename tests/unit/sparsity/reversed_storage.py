"""A fourth storage, for tests: one file and no other change makes a model train with it."""

import contextlib

import torch

from nt_dist.sparsity.storages import STORAGES
from nt_dist.sparsity.weight import ALL, Weight


class ReversedWeight(Weight):
    """Each fragment's slots from the last to the first, after a spare value that stays 0."""

    name, index_bytes, copies = "reversed", 8, (1, 2)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("places", torch.empty(self.values.shape, dtype=torch.int64, device=self.values.device))

    @staticmethod
    def value_shape(spec, shards):
        return (spec.total_slots(shards) + len(shards),)

    def part(self, tensor, trail, shard):
        start = self.spec.total_slots(range(self.shards.start, shard)) + shard - self.shards.start
        return tensor[trail - self.trails.start, start : start + 1 + self.spec.slots(shard)]

    def fragments(self):
        return [(trail, shard) for trail in self.trails for shard in self.shards]

    def build(self, values, rows=ALL):
        full = torch.zeros_like(self.places, dtype=values.dtype)
        full[rows] = values.detach()
        dense = values.new_zeros(len(self.trails), *self.local_shape)
        for fragment in self.fragments():
            block, places = self.block(dense, *fragment), self.part(self.places, *fragment)[1:]
            entries = values.new_zeros(self.spec.shard_elements)
            entries[places] = self.part(full, *fragment)[1:]
            block.copy_(entries.view(block.shape))
        return dense[rows]

    def gradient_of(self, dense, may_overwrite, rows=ALL):
        full = dense.new_zeros(len(self.trails), *self.local_shape)
        full[rows] = dense
        gradient = torch.zeros_like(self.places, dtype=dense.dtype)
        for fragment in self.fragments():
            places = self.part(self.places, *fragment)[1:]
            self.part(gradient, *fragment)[1:] = self.block(full, *fragment).reshape(-1)[places]
        return gradient[rows]

    def active(self, fragments):
        return torch.stack([self.part(self.places, *each)[1:].flip(0) for each in fragments])

    def set_active(self, fragments, positions):
        for fragment, places in zip(fragments, positions, strict=True):
            self.part(self.places, *fragment).copy_(torch.cat([places.new_zeros(1), places.flip(0)]))

    def read(self, tensor, fragments, positions):
        return torch.stack([self.part(tensor, *each)[1:].flip(0) for each in fragments])

    def write(self, tensor, fragments, positions, slots):
        for fragment, entries in zip(fragments, slots, strict=True):
            self.part(tensor, *fragment).copy_(torch.cat([entries.new_zeros(1), entries.flip(0)]))


@contextlib.contextmanager
def in_place_of_compact():
    """Within it, a config that asks for "compact" gets this."""
    before, STORAGES["compact"] = STORAGES["compact"], ReversedWeight
    try:
        yield
    finally:
        STORAGES["compact"] = before
