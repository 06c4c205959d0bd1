"""No bad number reaches masters, moments or Adam's step: every optimizer class of DeepSpeed, one stage and two."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch

from nt_dist.data.loader import Batch
from nt_dist.engine.bad_steps import StepVerdict
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.families import make_config
from nt_dist.model.trails import weights_of
from nt_dist.parallel.mesh import init_mesh
from nt_dist.parallel.place import MeshPlace
from nt_dist.testing import run_distributed
from tests.distributed.host_waits import HostWaits
from tests.distributed.tiny import OPTIMIZERS, SEQUENCE, TINY_MODEL, VOCABULARY

WINDOW, BATCH, MICRO_BATCH = 8, 8, 2
# what is wrong, on one rank alone: the gradient is multiplied by this, or this is added to the loss
GRADIENTS = {
    float("nan"): StepVerdict.NORM_NOT_FINITE,
    float("inf"): StepVerdict.NORM_NOT_FINITE,
    1e6: StepVerdict.NORM_SPIKE,
}
LOSSES = {float("nan"): StepVerdict.LOSS_NOT_FINITE, 1e6: StepVerdict.LOSS_SPIKE}


def _config(world_size, precision, stage, on_spike, pipe=1, trail=1, tensor=1):
    sections = {
        "model": TINY_MODEL,
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.4, "topology_shards": 2},
        "train": {
            "recipe": "paper",
            "batch_size": BATCH,
            "micro_batch_size": MICRO_BATCH,
            "lr": 1e-3,
            "warmup_steps": 0,
            "grad_clip": 0.5,
            "precision": precision,
            "on_spike": on_spike,
            "spike_window": WINDOW,
        },
        "parallel": {"pipe": pipe, "trail": trail, "tensor": tensor},
    }
    return make_config(sections, {"zero_optimization": {"stage": stage}}, world_size)


class _Run:
    """One rank's run, whose gradient or loss can be made bad on one rank."""

    def __init__(self, config, bad_rank):
        self.config, self.mesh = config, init_mesh(config)
        self.model = build_mesh_model(config, self.mesh)
        self.engine = build_engine(config, self.model, self.mesh)
        self.door = optimizer_state(self.engine)
        self.door.create()
        self.weights = weights_of(self.model)
        self.is_bad = self.mesh.rank == bad_rank
        self.factor, self.added = 1.0, 0.0
        for weight in self.weights.values():
            if self.mesh.place.owns(weight):  # its gradient is everybody's
                weight.values.register_hook(lambda gradient: gradient * self.factor)
                break

    def step(self, number, factor=1.0, added=0.0):
        generator = torch.Generator().manual_seed(number)
        rows = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)
        share = BATCH // self.mesh.data.degree
        rows = rows[self.mesh.data.rank * share :][:share]
        batches = [Batch(part[:, :-1], part[:, 1:], torch.ones(part[:, 1:].shape)) for part in rows.split(MICRO_BATCH)]
        self.factor = factor if self.is_bad else 1.0
        sums_of, extra = MeshPlace.trail_losses, added if self.is_bad else 0.0
        # in a first step a pipeline's stages exchange the shapes of what they send, and ZeRO 3 notes its order
        with (
            mock.patch.object(MeshPlace, "trail_losses", lambda *arguments: sums_of(*arguments) + extra),
            HostWaits() if number in (2, WINDOW + 1) else nullcontext() as waits,
        ):
            result = train_step(self.engine, self.config, self.mesh, batches, number)
        assert waits is None or waits.events == ["wait: tolist"]
        return result

    def state(self):
        whole = {name: self.door.read(weight) for name, weight in self.weights.items()}
        stored = {name: getattr(weight.values, "ds_tensor", weight.values) for name, weight in self.weights.items()}
        copies = {name: values.detach().clone() for name, values in stored.items()}  # ds_tensor: this rank's, at ZeRO 3
        return whole, copies, self.door.step

    def restore(self, state):
        for name, weight in self.weights.items():
            self.door.write(weight, state[0][name])
        self.door.step = state[2]

    def assert_is(self, state):
        whole, copies, step = self.state()
        assert step == state[2]
        for name in self.weights:
            assert all(torch.equal(whole[name][part], each) for part, each in state[0][name].items()), name
            assert torch.equal(copies[name], state[1][name]), f"the compute copy of {name}"


def _refuse_what_is_bad(rank, world_size, precision, stage, layout, bad_rank):
    run = _Run(_config(world_size, precision, stage, "skip", **layout), bad_rank)
    if not layout:
        assert type(run.engine.optimizer).__name__ == OPTIMIZERS[precision, stage]
    for number in range(1, WINDOW + 1):
        result = run.step(number)
        assert result.applied and result.verdict is StepVerdict.GOOD
    before, spread = run.state(), run.engine.step_guard.state()
    assert run.step(99).applied
    after = run.state()
    run.restore(before)
    run.engine.step_guard.restore(spread)
    for kind, faults in (("factor", GRADIENTS), ("added", LOSSES)):
        for fault, verdict in faults.items():
            result = run.step(WINDOW + 1, **{kind: fault})
            assert not result.applied and result.verdict is verdict, f"{kind} {fault}: {result}"
            assert (result.grad_norm < float("inf")) == (verdict != StepVerdict.NORM_NOT_FINITE)
            run.assert_is(before)
            assert run.engine.step_guard.state() == spread
    run.engine.step_guard.sigma = -1e9 if run.is_bad else 1e9  # a spike in one rank's eyes alone
    assert run.step(WINDOW + 1).verdict is StepVerdict.LOSS_SPIKE
    run.assert_is(before)
    run.engine.step_guard.sigma = 1e9
    result = run.step(99)  # nothing of the refused gradients is left
    assert result.applied and result.verdict is StepVerdict.GOOD
    run.assert_is(after)


@pytest.mark.parametrize(("precision", "stage"), OPTIMIZERS)
def test_a_bad_step_changes_nothing(precision, stage):
    run_distributed(_refuse_what_is_bad, 2, precision, stage, {}, 1)


@pytest.mark.parametrize(
    ("ranks", "precision", "stage", "layout", "bad_rank"),
    [
        (2, "fp32", 0, {"pipe": 2}, 1),
        (2, "fp32", 1, {"pipe": 2}, 1),
        (2, "bf16", 1, {"pipe": 2}, 1),
        (4, "fp32", 0, {"tensor": 2, "trail": 2}, 0),
    ],
)
def test_a_bad_step_changes_nothing_in_any_part_of_a_model(ranks, precision, stage, layout, bad_rank):
    run_distributed(_refuse_what_is_bad, ranks, precision, stage, layout, bad_rank)


def _go_on_over_a_spike(rank, world_size, on_spike):
    run = _Run(_config(world_size, "fp32", 1, on_spike), 0)
    for number in range(1, WINDOW + 1):
        run.step(number)
    result = run.step(WINDOW + 1, factor=1e6)
    return result.applied, result.verdict, run.step(WINDOW + 2, added=float("nan")).applied


@pytest.mark.parametrize(("on_spike", "verdict"), [("off", StepVerdict.GOOD), ("warn", StepVerdict.NORM_SPIKE)])
def test_a_spike_is_only_seen_if_so_chosen(on_spike, verdict):
    assert run_distributed(_go_on_over_a_spike, 1, on_spike) == [(True, verdict, False)]
