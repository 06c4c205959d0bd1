"""Topologies of groups: ``spec.group`` outputs of a shard share their inputs (docs/design.md §9).

What is dropped or grown is a *unit*, an input of a group or a block of adjacent ones. R fragments of alike shards, with
G groups of n inputs, k of which are active, in u units; the last group may have fewer outputs. Active entries are, row
after row, those of the row's group.
"""

from dataclasses import dataclass

import torch

from nt_dist.sparsity.spec import WeightSpec


@dataclass(frozen=True)
class Groups:
    """The groups of one shard."""

    size: int  # outputs of a group
    rows: int  # real outputs
    columns: int  # n
    active: int  # k
    real: int  # of n; padding is at the end
    width: int  # inputs of a unit
    device: torch.device | str

    @classmethod
    def of(cls, spec: WeightSpec, shard: int, device: torch.device | str = "cpu") -> "Groups":
        """Return those of ``shard``."""
        sizes = spec.real_rows(shard), spec.columns, spec.inputs(shard), spec.real_columns(shard), spec.width(shard)
        return cls(spec.group, *sizes, device)

    @property
    def count(self) -> int:
        """G."""
        return -(-self.rows // self.size)

    @property
    def of_row(self) -> torch.Tensor:
        """Each output's group, int64 [rows]."""
        return torch.arange(self.rows, device=self.device) // self.size

    def norms(self, entries: torch.Tensor) -> torch.Tensor:
        """Return the norms of units, fp32 [R · G, all or u], of entries [R, rows, n or k]."""
        entries = entries[:, :, : self.real]
        sums = entries.new_zeros(len(entries), self.count, entries.shape[2], dtype=torch.float32)
        sums.index_add_(1, self.of_row, entries.float().square())
        return sums.unflatten(2, (-1, self.width)).sum(3).sqrt_().flatten(0, 1)

    @property
    def units(self) -> tuple[int, int]:
        """How many units a group has, and how many of them are active."""
        return self.real // self.width, self.active // self.width

    def inputs(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the active inputs, ascending, int64 [R, G, k], of active positions [R, rows · k]."""
        return positions.view(len(positions), self.rows, self.active)[:, :: self.size] % self.columns

    def positions(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the active positions, ascending, int64 [R, rows · k], of active inputs [R, G, k]."""
        return (inputs[:, self.of_row] + self._offsets(self.columns)).flatten(1)

    def slots(self, units: torch.Tensor) -> torch.Tensor:
        """Return the slots, or -1, int64 [R, rows · k], of those among a group's u active units, or -1, [R, G, u]."""
        inputs = self.spread(units)[:, self.of_row]
        return torch.where(inputs < 0, inputs, inputs + self._offsets(self.active)).flatten(1)

    def spread(self, units: torch.Tensor) -> torch.Tensor:
        """Return the inputs [R, G, k] of units [R, G, u]; of -1 as many -1."""
        first, inside = units[..., None] * self.width, torch.arange(self.width, device=units.device)
        return torch.where(first < 0, -1, first + inside).flatten(2)

    def _offsets(self, step: int) -> torch.Tensor:
        return torch.arange(self.rows, device=self.device)[:, None] * step
