"""Topology updates of a whole model between optimizer steps, and the check that replicas agree (docs/design.md §3, §4).

What to drop and to regrow is decided in sparsity/update.py, the same on every rank that holds a copy of a shard; here
are the parts that need ranks and an optimizer: dense gradients summed over the ranks, masters and moments read and
rewritten.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from nt_dist.config import Config
from nt_dist.config.stages import prunings
from nt_dist.engine.optimizer_state import OptimizerState
from nt_dist.engine.optimizers import MODEL_AXES, clip_factor
from nt_dist.errors import TopologyError
from nt_dist.evaluation.topology import density
from nt_dist.model.trails import weights_of
from nt_dist.model.weights import weight_specs
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.rules import drop_fraction_at, is_update_step
from nt_dist.sparsity.update import TopologyUpdate
from nt_dist.sparsity.weight import Weight


class TopologyUpdater:
    """Rewires the sparse weights of a model while it trains; every rank has one."""

    def __init__(self, config: Config, mesh: Mesh, model: nn.Module, optimizer_state: OptimizerState, engine: Any):
        self.config, self.mesh, self.place = config, mesh, mesh.place
        self.optimizer_state, self.engine = optimizer_state, engine
        self.sparse = {name: weight for name, weight in weights_of(model).items() if weight.spec.is_sparse}
        specs = weight_specs(config).values()
        self.density = density(specs)  # of the whole model, which an update does not change
        self._slots = sum(spec.trails * spec.total_slots() for spec in specs if spec.is_sparse)  # of the whole model

    def updates_at(self, step: int) -> bool:
        """Say whether the topology changes after optimizer step ``step`` (from 1).

        It does not before a pruning, which would take what was grown.
        """
        settings, steps = self.config.sparsity, self.config.train.steps
        is_due = is_update_step(step, settings.update_every, steps, settings.stop_fraction)
        return self._slots > 0 and is_due and step not in prunings(self.config)

    def collects_at(self, step: int) -> bool:
        """Say whether step ``step`` has to keep the dense gradients (``collect`` of train_step)."""
        return self.config.sparsity.uses_gradients and self.updates_at(step)

    def update(self, step: int) -> tuple[float, float]:
        """Update every sparse weight after optimizer step ``step``, which was applied. Collective.

        The dense gradients are used up. :meth:`check` compares the outcome. Returns the shares of all slots of the
        model that have a new place, and that were dropped: some of these regrow where they were.
        """
        assert self.updates_at(step), f"no update is due after step {step}"
        settings, steps = self.config.sparsity, self.config.train.steps
        fraction = drop_fraction_at(step, settings.drop_fraction, settings.drop_schedule, steps, settings.stop_fraction)
        scale = self._gradient_scale() if settings.uses_gradients else None
        replaced = torch.zeros((), dtype=torch.int64, device=self.mesh.device)
        with self.mesh.working("updating topology") as beat:
            for weight in self.sparse.values():
                count = self._update(weight, step, fraction, scale)
                if self.place.owns(weight):
                    replaced += count
                beat()
        return int(self.mesh.all_reduce(replaced, MODEL_AXES)) / self._slots, fraction

    def skip(self) -> None:
        """Forget the dense gradients of a step that was not applied: its update is skipped as well."""
        for weight in self.sparse.values():
            weight.dense_gradient = None

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
        weight.dense_gradient = None
        if scale is not None:
            assert gradient is not None, f"{weight.spec.name}: step {step} has not collected its dense gradient"
            self.mesh.all_reduce(gradient, self.mesh.sample_axes(weight.spec.in_trail)).mul_(scale)
            # On the model's axes copies have the same gradient by now. But topologies must not differ by a bit that
            # two GPUs, or two sums in another order, made otherwise: the first rank's is everybody's.
            self.mesh.broadcast(gradient, self.place.replica_axes(weight))
        state = self.optimizer_state.read(weight)
        settings, seed = self.config.sparsity, self.config.train.seed
        replaced = TopologyUpdate(weight, state, gradient, settings, seed, step, fraction).apply()
        self.optimizer_state.write(weight, state)
        return replaced

    @torch.no_grad()
    def check(self, when: str) -> str:
        """Compare the topologies of all replicas. Collective.

        Returns 16 hex digits that stand for the topology of the whole model, the same in every layout and storage.
        Else a TopologyError on all ranks says that after ``when`` ("loading", "the update at step 50") they differ.
        """
        tables = [weight.checksum() for weight in self.sparse.values()]
        axes = [("data", *self.place.replica_axes(weight)) for weight in self.sparse.values()]
        extremes = self.mesh.extremes(tables, axes)
        agree(self.mesh, lambda: self._compare(extremes, when))
        words = (
            f"{name}/{trail}/{shard}/{checksum}".encode()
            for (name, weight), table in zip(self.sparse.items(), tables, strict=True)
            if self.place.owns(weight)
            for trail, of_shards in zip(weight.trails, table.tolist(), strict=True)
            for shard, checksum in zip(weight.shards, of_shards, strict=True)
        )
        digests = [int.from_bytes(hashlib.blake2b(each, digest_size=8).digest(), "little") for each in words]
        # a sum, so that the order and who computes it do not matter; of halves, which an int64 holds
        halves = [sum(each >> 32 for each in digests), sum(each % (1 << 32) for each in digests)]
        high, low = self.mesh.all_reduce(torch.tensor(halves, device=self.mesh.device), MODEL_AXES).tolist()
        return f"{((high << 32) + low) % (1 << 64):016x}"

    def _compare(self, extremes: list[torch.Tensor], when: str) -> None:
        differs = [
            (weight, lowest[row, column], highest[row, column], weight.trails[row], weight.shards[column])
            for weight, (lowest, highest) in zip(self.sparse.values(), extremes, strict=True)
            for row, column in (lowest != highest).nonzero().tolist()
        ]
        if not differs:
            return
        weight, *checksums, trail, shard = differs[0]
        low, high = (int(each) % (1 << 64) for each in checksums)
        others = f", and {len(differs) - 1} more of trail and shard" if len(differs) > 1 else ""
        raise TopologyError(
            f"{weight.spec.name}: the topologies of its replicas differ after {when}: checksums {low:016x} and "
            f"{high:016x} (trail {trail + 1}, shard {shard}{others})"
        )
