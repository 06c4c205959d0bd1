"""Topologies of groups: ``spec.group`` outputs of a shard share their inputs (docs/design.md §2).

What is dropped or grown is a *unit*, an input of a group. R fragments of alike shards, with G groups of n inputs, k of
which are active; the last group may have fewer outputs. Active entries are, row after row, those of the row's group.
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
    padding: int  # of n, at the end
    device: torch.device | str

    @classmethod
    def of(cls, spec: WeightSpec, shard: int, device: torch.device | str = "cpu") -> "Groups":
        """Return those of ``shard``."""
        rows, real = spec.real_rows(shard), spec.real_columns(shard)
        return cls(spec.group, rows, spec.columns, spec.inputs(shard), spec.columns - real, device)

    @property
    def count(self) -> int:
        """G."""
        return -(-self.rows // self.size)

    @property
    def of_row(self) -> torch.Tensor:
        """Each output's group, int64 [rows]."""
        return torch.arange(self.rows, device=self.device) // self.size

    def norms(self, entries: torch.Tensor) -> torch.Tensor:
        """Return the norms of units, fp32 [R · G, n or k], of entries [R, rows, n or k]."""
        sums = entries.new_zeros(len(entries), self.count, entries.shape[2], dtype=torch.float32)
        return sums.index_add_(1, self.of_row, entries.float().square()).sqrt_().flatten(0, 1)

    def inputs(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the active inputs, ascending, int64 [R, G, k], of active positions [R, rows · k]."""
        return positions.view(len(positions), self.rows, self.active)[:, :: self.size] % self.columns

    def positions(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the active positions, ascending, int64 [R, rows · k], of active inputs [R, G, k]."""
        return (inputs[:, self.of_row] + self._offsets(self.columns)).flatten(1)

    def slots(self, units: torch.Tensor) -> torch.Tensor:
        """Return the slots, or -1, int64 [R, rows · k], of those among a group's k units, or -1, [R, G, k]."""
        units = units[:, self.of_row]
        return torch.where(units < 0, units, units + self._offsets(self.active)).flatten(1)

    def _offsets(self, step: int) -> torch.Tensor:
        return torch.arange(self.rows, device=self.device)[:, None] * step
