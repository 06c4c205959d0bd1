"""The door to the optimizer: what is written is read to the bit, computed with, and stepped on as by AdamW or SGD."""

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn

from nt_dist.engine.engine import build_engine
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.optimizers import parameter_groups
from nt_dist.families import make_config
from nt_dist.model.layers import Linear
from nt_dist.parallel.mesh import init_mesh
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.storages import STORAGES
from nt_dist.testing import run_distributed
from tests.distributed.tiny import OPTIMIZERS

SGD = {
    "sgd": {"optimizer": "sgd", "momentum": 0.8},
    "nesterov": {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
}
BETAS, EPS, LR, DECAY, CLIP = (0.8, 0.9), 1e-3, 0.01, 0.1, 2.0


class Toy(nn.Module):
    """Weights of all storages; a loss that is linear in them, so that small whole numbers give exact gradients.

    The sizes are odd: pieces begin and end within weights, and at ZeRO 3 some end in padding. Two of the weights are so
    small that ZeRO 3 keeps them gathered.
    """

    def __init__(self):
        super().__init__()
        specs = [
            (WeightSpec("compact", (6, 5), 0, trails=3, shards=2, density=0.5), "compact"),
            (WeightSpec("masked", (4, 5), 0, trails=1, shards=2, density=0.4), "masked"),
            (WeightSpec("dense", (9, 5), 0, trails=1), "dense"),
            (WeightSpec("scale", (5,), 0, trails=1, init=None, role="scale"), "dense"),
        ]
        self.weights = nn.ModuleList(STORAGES[storage](spec) for spec, storage in specs)
        for weight in self.weights:
            weight.reset(seed=5)

    def forward(self, x):
        """Sum over weights of a weighted sum of their outputs for x [1, 1, N, 5]."""
        total = 0.0
        for number, weight in enumerate(self.weights):
            product = weight(_scaled, x) if weight.spec.role == "scale" else Linear(weight)(x)
            total = total + (number + 1) * product.float().sum()
        return total


def _scaled(weight, x):
    return x * weight.dense()[:, None, None, :]


def _toy_config(precision, stage, world_size, optimizer="adamw"):
    train = {
        "recipe": "paper",
        "batch_size": world_size,
        "micro_batch_size": 1,
        "precision": precision,
        "betas": list(BETAS),
    }
    train |= {"adam_eps": EPS, "lr": LR, "weight_decay": DECAY, "grad_clip": CLIP, "warmup_steps": 0}
    train |= SGD.get(optimizer, {})
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 30} if stage == 3 else {})
    json = {"zero_optimization": zero}
    if precision == "bf16":
        json["data_types"] = {"grad_accum_dtype": "fp32"}
    return make_config({"train": train}, json, world_size)


def _input(rank, dtype=torch.float32):
    return (torch.arange(15).view(1, 1, 3, 5) % 4 + rank).to(dtype)


def _random_states(weights, moments):
    """A state for each weight that a compact and a masked storage can hold; with a -0 in each."""
    generator = torch.Generator().manual_seed(1)
    states = []
    for weight in weights:
        slots = torch.rand(1 + len(moments), len(weight.trails), weight.num_slots, generator=generator) + 0.1
        slots[:, 0, 0] = -0.0
        parts = zip(("value", *moments), slots, strict=True)
        states.append({part: weight.from_slots(each).clone() for part, each in parts})
    return states


def _stepped_by_plain_adamw(states, adam_step, world_size):
    """What a clipped AdamW step makes of ``states``, written out (Loshchilov and Hutter, arXiv 1711.05101, alg. 2)."""
    toy = Toy()
    torch.stack([toy(_input(rank)) for rank in range(world_size)]).mean().backward()
    norm = torch.cat([weight.values.grad.flatten() for weight in toy.weights]).norm()
    assert norm > CLIP
    after = []
    for weight, state in zip(toy.weights, states, strict=True):
        value, exp_avg, exp_avg_sq = state.values()
        gradient = weight.values.grad * CLIP / norm
        decay = 0.0 if weight.spec.role == "scale" else DECAY
        exp_avg = BETAS[0] * exp_avg + (1 - BETAS[0]) * gradient
        exp_avg_sq = BETAS[1] * exp_avg_sq + (1 - BETAS[1]) * gradient**2
        unbiased = (exp_avg / (1 - BETAS[0] ** adam_step), exp_avg_sq / (1 - BETAS[1] ** adam_step))
        value = value * (1 - LR * decay) - LR * unbiased[0] / (unbiased[1].sqrt() + EPS)
        after.append({"value": value, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    return after, norm


def _stepped_by_plain_sgd(states, settings, world_size):
    """What torch's clipping and SGD make of ``states``."""
    toy = Toy()
    torch.stack([toy(_input(rank)) for rank in range(world_size)]).mean().backward()
    options = {key: value for key, value in settings.items() if key != "optimizer"}
    optimizer = torch.optim.SGD(parameter_groups(_toy_config("fp32", 0, 1), toy), LR, **options)
    norm = nn.utils.clip_grad_norm_(toy.parameters(), CLIP)
    assert norm > CLIP
    for weight, state in zip(toy.weights, states, strict=True):
        weight.values.data.copy_(state["value"])
        optimizer.state[weight.values].update({name: part.clone() for name, part in list(state.items())[1:]})
    optimizer.step()
    moments = list(states[0])[1:]
    after = [{name: optimizer.state[weight.values][name] for name in moments} for weight in toy.weights]
    return [{"value": w.values.detach(), **state} for w, state in zip(toy.weights, after, strict=True)], norm


def _assert_same_bits(states, expected, names):
    for state, wanted, name in zip(states, expected, names, strict=True):
        assert state.keys() == wanted.keys(), name
        for part, found in state.items():
            assert torch.equal(found.view(torch.int32), wanted[part].view(torch.int32)), f"{name}.{part}"


def _assert_computed_with(weights, states, dtype):
    """The compute copies are the masters' values; returns how many ZeRO 3 holds gathered between steps."""
    kept = 0
    for weight, state in zip(weights, states, strict=True):
        if getattr(weight.values, "ds_status", None) == ZeroParamStatus.AVAILABLE:
            kept += 1
            assert torch.equal(weight.values.data, state["value"].to(dtype)), weight.spec.name
        with deepspeed.zero.GatheredParameters([weight.values]):  # which ends with nothing gathered
            assert torch.equal(weight.values.data, state["value"].to(dtype)), weight.spec.name
    return kept


def _check_adapter(rank, world_size, precision, stage, optimizer="adamw"):
    config = _toy_config(precision, stage, world_size, optimizer)
    counts = optimizer == "adamw"  # its steps
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    toy, moments = Toy(), config.train.moments
    first = [
        {"value": w.values.detach().to(dtype).float(), **{name: torch.zeros(w.values.shape) for name in moments}}
        for w in toy.weights
    ]
    names = [weight.spec.name for weight in toy.weights]
    engine = build_engine(config, toy, init_mesh(config))
    assert type(engine.optimizer).__name__ == OPTIMIZERS[precision, stage].replace(
        "AdamW", "AdamW" if counts else "SGD"
    )
    door = optimizer_state(engine)

    door.create()  # before any step
    assert door.step == 0
    _assert_same_bits([door.read(weight) for weight in toy.weights], first, names)

    states = _random_states(toy.weights, moments)
    for weight, state in zip(toy.weights, states, strict=True):
        door.write(weight, state)
    door.step = 7
    door.create()  # leaves alone what is there
    _assert_same_bits([door.read(weight) for weight in toy.weights], states, names)
    _assert_computed_with(toy.weights, states, dtype)

    engine.backward(engine(_input(rank, dtype)))
    engine.step()
    if counts:
        expected, norm = _stepped_by_plain_adamw(states, 8, world_size)
    else:
        expected, norm = _stepped_by_plain_sgd(states, SGD[optimizer], world_size)
    assert engine.was_step_applied() and door.step == (8 if counts else 0)
    assert float(engine.get_global_grad_norm()) == pytest.approx(float(norm), rel=1e-5)
    after = [door.read(weight) for weight in toy.weights]
    for name, found, wanted in zip(names, after, expected, strict=True):
        assert found.keys() == wanted.keys()
        for part in found:
            assert torch.allclose(found[part], wanted[part], rtol=1e-5, atol=1e-6), f"{name}.{part}"
    for weight, state in zip(toy.weights, states, strict=True):
        door.write(weight, state)
    kept = _assert_computed_with(toy.weights, states, dtype)
    assert kept == (2 if stage == 3 else 0)

    engine.backward(engine(_input(rank, dtype) * (torch.inf if rank == world_size - 1 else 1.0)))
    engine.step()  # one rank's gradients overflowed: no rank may step
    assert not engine.was_step_applied() and door.step == (8 if counts else 0)
    _assert_same_bits([door.read(weight) for weight in toy.weights], states, names)
    _assert_computed_with(toy.weights, states, dtype)
    return door.state_bytes()


@pytest.mark.parametrize(
    ("optimizer", "moments"), [("adamw", 2), ("sgd", 1), ("nesterov", 1), ("sgd without momentum", 0)]
)
@pytest.mark.parametrize(("precision", "stage"), OPTIMIZERS)
def test_state_is_read_written_and_stepped_on(precision, stage, optimizer, moments):
    sizes = run_distributed(_check_adapter, 2, precision, stage, optimizer)
    stored = sum(weight.values.numel() for weight in Toy().weights)
    if stage == 0:
        assert sizes == [4 * moments * stored] * 2
    else:  # master and moments, halved but for alignment
        value = 4 * (1 + moments)
        assert all(value * stored / 2 <= size <= value * (stored / 2 + 8) for size in sizes)


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1), ("fp32", 3)])
def test_one_rank_alone(precision, stage):
    run_distributed(_check_adapter, 1, precision, stage)


def test_every_parameter_is_in_exactly_one_group():
    toy, config = Toy(), _toy_config("fp32", 0, 1)
    matrices, scales = parameter_groups(config, toy)
    assert (matrices["weight_decay"], scales["weight_decay"]) == (DECAY, 0.0)
    assert scales["params"] == [toy.weights[3].values] and len(matrices["params"]) == 3
    toy.stray = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="belongs to no weight"):
        parameter_groups(config, toy)
    del toy.stray
    toy.weights[1].values = toy.weights[0].values
    with pytest.raises(AssertionError, match="in two optimizer groups"):
        parameter_groups(config, toy)
