"""Topology updates of a whole model between optimizer steps, and the check that replicas agree (DESIGN §3, §4).

What to drop and to regrow is decided in sparsity/update.py, the same on every rank that holds a copy of a shard; here
are the parts that need ranks and an optimizer: dense gradients summed over the ranks, masters and moments read and
rewritten.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nt_dist.config import Config
from nt_dist.errors import TopologyError
from nt_dist.evaluation.topology import whole_density
from nt_dist.model.trails import weights_of
from nt_dist.model.weights import weight_specs
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.schedule import drop_fraction_at, is_update_step
from nt_dist.sparsity.storage import Weight
from nt_dist.sparsity.update import UpdateRules, apply_update, plan_update
from nt_dist.training.engine import clip_factor
from nt_dist.training.optimizer_state import OptimizerState, State

REPLICAS = ("data",)  # axes along which ranks hold copies of the same shards


@dataclass(frozen=True)
class UpdateReport:
    """One topology update.

    Attributes:
        replaced: Slots that have a new place, over the sparse weights of the model.
        regrown: Their share of these weights' slots.
        drop_fraction: Share that was dropped; some of it regrows where it was.
        density: Active over all entries of the model's matrices; an update does not change it.
    """

    replaced: int
    regrown: float
    drop_fraction: float
    density: float


class TopologyUpdater:
    """Rewires the sparse weights of a model while it trains.

    Args:
        config: The config.
        mesh: The mesh.
        model: The model given to the engine.
        optimizer_state: The engine's, created.
        engine: The engine.
    """

    def __init__(self, config: Config, mesh: Mesh, model: nn.Module, optimizer_state: OptimizerState, engine: Any):
        self.config, self.mesh = config, mesh
        self.optimizer_state, self.engine = optimizer_state, engine
        self.weights = weights_of(model)
        self.sparse = {name: weight for name, weight in self.weights.items() if weight.spec.is_sparse}
        # Of the whole model: all ranks update together, also one that holds none of its sparse weights.
        self.is_sparse = any(spec.is_sparse for spec in weight_specs(config).values())
        settings = config.sparsity
        self.rules = UpdateRules(
            settings.drop, settings.temperature, settings.grow, settings.new_moments, config.train.seed
        )
        self.needs_gradient = settings.grow == "gradient" or settings.new_moments == "gradient"

    def updates_at(self, step: int) -> bool:
        """Say whether the topology changes after optimizer step ``step`` (from 1)."""
        settings, steps = self.config.sparsity, self.config.train.steps
        return self.is_sparse and is_update_step(step, settings.update_every, steps, settings.stop_fraction)

    def collects_at(self, step: int) -> bool:
        """Say whether step ``step`` has to keep the dense gradients (``collect`` of train_step)."""
        return self.needs_gradient and self.updates_at(step)

    def update(self, step: int) -> UpdateReport:
        """Update every sparse weight after optimizer step ``step``, which was applied.

        A collective of all ranks. The dense gradients are used up. :meth:`check` compares the outcome.
        """
        assert self.updates_at(step), f"no update is due after step {step}"
        settings, steps = self.config.sparsity, self.config.train.steps
        fraction = drop_fraction_at(step, settings.drop_fraction, settings.drop_schedule, steps, settings.stop_fraction)
        scale = self._gradient_scale() if self.needs_gradient else None
        counts = torch.zeros(2, dtype=torch.int64, device=self.mesh.device)
        for weight in self.sparse.values():
            counts[0] += self._update(weight, step, fraction, scale)
            counts[1] += weight.active_elements
        replaced, slots = self.mesh.all_reduce(counts, ("pipe",)).tolist()
        return UpdateReport(replaced, replaced / slots, fraction, whole_density(self.config))

    def skip(self) -> None:
        """Forget the dense gradients of a step that was not applied: its update is skipped as well."""
        for weight in self.sparse.values():
            weight.drop_gradient()

    def _gradient_scale(self) -> torch.Tensor:
        """Return what turns the sum of the ranks' dense gradients into the gradient that Adam was given.

        It matters where a new slot's second moment is the squared gradient; the order of gradients is the same without.
        """
        factor = clip_factor(self.engine.get_global_grad_norm(), self.config.train.grad_clip) / self.mesh.data.degree
        if self.config.sparsity.regrow_from == "last_micro_batch":
            factor = factor * self.config.accumulation_steps
        return factor.to(self.mesh.device)

    def _update(self, weight: Weight, step: int, fraction: float, scale: torch.Tensor | None) -> torch.Tensor:
        """Update one weight; return how many of its slots have a new place, a scalar tensor."""
        gradient = weight.dense_gradient
        weight.drop_gradient()
        if scale is not None:
            assert gradient is not None, f"{weight.spec.name}: step {step} has not collected its dense gradient"
            self.mesh.all_reduce(gradient, REPLICAS).mul_(scale)
        state = self.optimizer_state.read(weight)
        rewrite = plan_update(weight, state.value, gradient, self.rules, step, fraction)
        new = apply_update(weight, rewrite, *state, gradient, self.rules.new_moments)
        self.optimizer_state.write(weight, State(*new))
        return rewrite.replaced

    @torch.no_grad()
    def check(self, when: str) -> str:
        """Compare the topologies of all replicas; a collective of all ranks.

        Args:
            when: What has just happened, for the message: "the start", "loading", "the update at step 50".

        Returns:
            16 hex digits that stand for the topology of the whole model, the same in every layout and storage.

        Raises:
            TopologyError: On all ranks, with the first weight that differs and both checksums.
        """
        table = self._checksums()
        lowest = self.mesh.all_reduce(table.clone(), REPLICAS, op="min")
        highest = self.mesh.all_reduce(table.clone(), REPLICAS, op="max")
        agree(self.mesh, lambda: self._compare(lowest, highest, when))
        total = 0
        for (name, trail, shard), checksum in zip(self._entries(), table.tolist(), strict=True):
            words = f"{name}/{trail}/{shard}/{checksum}".encode()
            total += int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
        stages = self.mesh.gather_objects((self.mesh.pipe.rank, total))  # of one stage all ranks have the same
        return f"{sum(dict(stages).values()) % (1 << 64):016x}"

    def _entries(self) -> list[tuple[str, int, int]]:
        """Return (weight, trail, shard), by global numbers, of every checksum, in order."""
        return [
            (name, trail, shard)
            for name, weight in self.sparse.items()
            for trail in weight.trails
            for shard in weight.shards
        ]

    def _checksums(self) -> torch.Tensor:
        """Return the checksums of all local shards, int64 [entries]."""
        parts = [weight.checksum().flatten() for weight in self.sparse.values()]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=self.mesh.device)

    def _compare(self, lowest: torch.Tensor, highest: torch.Tensor, when: str) -> None:
        differs = (lowest != highest).nonzero().flatten().tolist()
        if not differs:
            return
        name, trail, shard = self._entries()[differs[0]]
        low, high = (int(each[differs[0]]) % (1 << 64) for each in (lowest, highest))
        others = f", and {len(differs) - 1} more of trail and shard" if len(differs) > 1 else ""
        raise TopologyError(
            f"{name}: the topologies of its replicas differ after {when}: checksums {low:016x} and {high:016x} "
            f"(trail {trail}, shard {shard}{others})"
        )
