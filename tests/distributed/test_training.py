"""Training under every ZeRO stage, storage and data degree is the same training, topology updates included."""

import contextlib
import io
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from nt_dist.data.loader import Batch
from nt_dist.engine.engine import build_engine, learning_rate, train_step
from nt_dist.engine.optimizer_state import State, optimizer_state
from nt_dist.errors import TopologyError
from nt_dist.families import make_config
from nt_dist.model import trails
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model, weights_of
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed
from nt_dist.training.topology_updates import TopologyUpdater
from tests.distributed.tiny import OPTIMIZERS

STEPS, BATCH, MICRO_BATCH, SEQUENCE, VOCABULARY = 7, 8, 2, 8, 30
STORAGES = ("compact", "masked")


@dataclass
class Record:
    """What a run did, on one rank."""

    losses: list[list[float]]
    norms: list[float]
    checksums: list[str]
    regrown: list[float]
    states: dict[str, State]


def _config(world_size, stage=0, precision="fp32", optimizer=None, **sparsity):
    """A tiny model with clipping on, which is updated after steps 2, 4 and 6; ``optimizer`` are settings of it."""
    model = {"hidden_size": 16, "ffn_size": 24, "num_layers": 2, "num_attention_heads": 2}
    train = {
        "recipe": "paper",
        "steps": STEPS,
        "batch_size": BATCH,
        "micro_batch_size": MICRO_BATCH,
        "lr": 3e-3,
        "warmup_steps": 2,
    }
    train |= {"adam_eps": 1e-4, "weight_decay": 0.1, "grad_clip": 0.5, "precision": precision}
    train |= optimizer or {}
    sections = {
        "model": model | {"vocab_size": VOCABULARY, "max_seq_len": SEQUENCE},
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.4, "topology_shards": 2, "update_every": 2, "storage": "compact"} | sparsity,
        "train": train,
    }
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 100} if stage == 3 else {})
    json = {"zero_optimization": zero}
    if precision == "bf16":
        json["data_types"] = {"grad_accum_dtype": "fp32"}
    return make_config(sections, json, world_size)


def _batches(step, rank=0, world_size=1):
    """One rank's micro-batches of a global step of ragged rows: padded at the end, one of them to the half."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)
    lengths = torch.randint(2, SEQUENCE + 1, (BATCH,), generator=generator)
    lengths[0] = SEQUENCE // 2
    weights = (torch.arange(SEQUENCE) < lengths[:, None]).float()
    share = BATCH // world_size
    mine = slice(rank * share, (rank + 1) * share)
    parts = zip(rows[mine].split(MICRO_BATCH), weights[mine].split(MICRO_BATCH), strict=True)
    return [Batch(part[:, :-1], part[:, 1:], weight) for part, weight in parts]


def _start(config):
    mesh = init_mesh(config)
    model = build_model(config)
    engine = build_engine(config, model, mesh)
    state = optimizer_state(engine)
    state.create()
    return mesh, model, engine, state, TopologyUpdater(config, mesh, model, state, engine)


def _train(config):
    mesh, model, engine, door, updater = _start(config)
    record = Record([], [], [updater.check("the start")], [], {})
    for step in range(1, STEPS + 1):
        batches = _batches(step, mesh.rank, mesh.world_size)
        result = train_step(engine, config, mesh, batches, step, updater.collects_at(step))
        assert result.applied and result.learning_rate == learning_rate(config, step)
        record.losses.append(result.loss_per_trail)
        record.norms.append(result.grad_norm)
        if updater.updates_at(step):
            regrown, dropped = updater.update(step)
            record.checksums.append(updater.check(f"the update at step {step}"))
            record.regrown.append(regrown)
            assert updater.density == pytest.approx(0.4, abs=0.01) and regrown < dropped + 0.01
    assert record.regrown[0] > 0.02 and any(record.regrown[1:])
    assert door.step == (STEPS if config.train.optimizer == "adamw" else 0)
    assert all(weight.dense_gradient is None for weight in weights_of(model).values())
    # as a checkpoint has it: by slot, whatever the storage
    for name, weight in weights_of(model).items():
        record.states[name] = {part: weight.to_slots(each) for part, each in door.read(weight).items()}
    return record


def _train_in(rank, world_size, stage, precision, storages):
    return [_train(_config(world_size, stage, precision, storage=storage)) for storage in storages]


def _assert_alike(record, wanted, relative, absolute):
    for losses, right in zip(record.losses, wanted.losses, strict=True):
        assert losses == pytest.approx(right, rel=relative)
    assert record.norms == pytest.approx(wanted.norms, rel=relative)
    assert record.checksums == wanted.checksums
    assert record.regrown == wanted.regrown
    for name, state in record.states.items():
        assert state.keys() == wanted.states[name].keys()
        for part, found in state.items():
            difference = float((found - wanted.states[name][part]).abs().max())
            assert difference <= absolute, f"{name}.{part} differs by {difference}"


@pytest.fixture(scope="module")
def one_rank():
    """One rank in fp32 with compact weights: what all others are compared with."""
    record = run_distributed(_train_in, 1, 0, "fp32", ("compact",))[0][0]
    assert len(set(record.checksums)) == 4, "three updates must have changed the topology"
    assert max(record.norms) > 0.5, "clipping must have been at work"
    return record


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_and_storage_trains_as_one_rank_does(stage, one_rank):
    for records in run_distributed(_train_in, 2, stage, "fp32", STORAGES):
        compact, masked = records
        _assert_alike(compact, one_rank, relative=1e-5, absolute=1e-5)
        _assert_alike(masked, compact, relative=2e-6, absolute=1e-5)


def _train_compiled(rank, world_size, stage, storage):
    with mock.patch.object(trails, "BACKEND", "aot_eager"):
        record = _train(_config(world_size, stage, optimizer={"compile": True}, storage=storage))
    return record, counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("stage", "storage"), [(0, "compact"), (2, "masked")])
def test_a_compiled_model_trains_as_one_rank_does(stage, storage, one_rank):
    ((record, graphs),) = run_distributed(_train_compiled, 1, stage, storage)
    _assert_alike(record, one_rank, relative=1e-5, absolute=1e-5)
    assert graphs > 0


@pytest.fixture(scope="module")
def one_rank_bf16(one_rank):
    """One rank in bf16, near to fp32."""
    record = run_distributed(_train_in, 1, 1, "bf16", ("compact",))[0][0]
    for losses, right in zip(record.losses, one_rank.losses, strict=True):
        assert losses == pytest.approx(right, rel=5e-3)
    return record


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_sums_gradients_in_fp32_at_every_stage(stage, one_rank_bf16):
    for records in run_distributed(_train_in, 2, stage, "bf16", STORAGES):
        compact, masked = records
        _assert_alike(compact, one_rank_bf16, relative=1e-4, absolute=1e-4)
        _assert_alike(masked, compact, relative=1e-4, absolute=1e-4)


NESTEROV = {"optimizer": "sgd", "momentum": 0.8, "nesterov": True, "lr": 0.3}


RATES = {"lr_embedding": 10.0, "lr_output": 0.5, "lr_trunk": 2.0}


def _plain_groups(config, model):
    """A parameter group a weight, by the weights' names."""
    train = config.train
    factors = {"embedding": train.lr_embedding, "norm": train.lr_output, "output": train.lr_output}
    return [
        {
            "params": [weight.values],
            "factor": factors.get(name, train.lr_trunk if name.startswith("blocks.0.") else 1.0),
            "weight_decay": 0.0 if name.endswith("norm") else train.weight_decay,
        }
        for name, weight in weights_of(model).items()
    ]


def _train_plainly(rank, world_size, optimizer):
    """As anybody would write it: the global batch in one pass, torch's clipping and optimizer; states as above."""
    config = _config(1, optimizer=optimizer, update_every=0)
    model = build_model(config)
    if config.train.optimizer == "sgd":
        options = {key: optimizer[key] for key in ("momentum", "nesterov")}
        plain = torch.optim.SGD(_plain_groups(config, model), **options)
    else:
        plain = torch.optim.AdamW(_plain_groups(config, model), betas=config.train.betas, eps=config.train.adam_eps)
    record = Record([], [], [], [], {})
    for step in range(1, STEPS + 1):
        batch = Batch(*(torch.cat(parts) for parts in zip(*_batches(step), strict=True)))
        sums = Place().trail_losses(model(batch.inputs), batch.targets, batch.weights)
        losses = sums / batch.weights.sum()
        plain.zero_grad()
        losses.sum().backward()
        record.losses.append(losses.tolist())
        record.norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)))
        for group in plain.param_groups:
            group["lr"] = group["factor"] * learning_rate(config, step)
        plain.step()
    for name, weight in weights_of(model).items():
        moments = {name: plain.state[weight.values][name] for name in config.train.moments}
        states = {"value": weight.values.detach(), **moments}
        record.states[name] = {part: weight.to_slots(each) for part, each in states.items()}
    return record


def _train_static(rank, world_size, stage, precision, optimizer):
    config = _config(world_size, stage, precision, optimizer, update_every=0)
    mesh, model, engine, door, _ = _start(config)
    record = Record([], [], [], [], {})
    for step in range(1, STEPS + 1):
        result = train_step(engine, config, mesh, _batches(step, mesh.rank, mesh.world_size), step)
        record.losses.append(result.loss_per_trail)
        record.norms.append(result.grad_norm)
    for name, weight in weights_of(model).items():
        record.states[name] = {part: weight.to_slots(each) for part, each in door.read(weight).items()}
    return record


@pytest.fixture(scope="module")
def plain_nesterov():
    """SGD with Nesterov's momentum, written out."""
    return run_distributed(_train_plainly, 1, NESTEROV)[0]


@pytest.mark.parametrize(("precision", "stage"), OPTIMIZERS)
def test_sgd_trains_as_plain_torch_does(precision, stage, plain_nesterov):
    assert max(plain_nesterov.norms) > 0.5, "clipping must have been at work"
    for record in run_distributed(_train_static, 2, stage, precision, NESTEROV):
        relative, absolute = (1e-5, 1e-5) if precision == "fp32" else (3e-2, 2e-2)
        _assert_alike(record, plain_nesterov, relative, absolute)


@pytest.fixture(scope="module")
def plain_adamw_of_groups():
    """AdamW with a learning rate for each group of parameters, written out."""
    record, alike = (run_distributed(_train_plainly, 1, rates)[0] for rates in (RATES, {}))
    assert max(record.norms) > 0.5 and record.losses[-1] != pytest.approx(alike.losses[-1], rel=1e-4)
    return record


@pytest.mark.parametrize(("precision", "stage"), OPTIMIZERS)
def test_groups_learn_at_their_own_rates_as_in_plain_torch(precision, stage, plain_adamw_of_groups):
    for record in run_distributed(_train_static, 2, stage, precision, RATES):
        relative, absolute = (1e-5, 1e-5) if precision == "fp32" else (3e-2, 2e-2)
        _assert_alike(record, plain_adamw_of_groups, relative, absolute)


def test_sgd_without_momentum_trains_as_plain_torch_does():
    plain = NESTEROV | {"momentum": 0.0, "nesterov": False}
    wanted = run_distributed(_train_plainly, 1, plain)[0]
    for stage in (0, 2):
        for record in run_distributed(_train_static, 2, stage, "fp32", plain):
            _assert_alike(record, wanted, relative=1e-5, absolute=1e-5)


def _train_by(rank, world_size, stage, optimizer, storages):
    return [_train(_config(world_size, stage, "fp32", optimizer, storage=storage)) for storage in storages]


def test_the_topology_of_sgd_is_updated_alike_at_every_stage():
    optimizer = NESTEROV | {"lr": 0.02}
    wanted = run_distributed(_train_by, 1, 0, optimizer, ("compact",))[0][0]
    assert len(set(wanted.checksums)) == 4, "three updates must have changed the topology"
    for stage in (0, 1, 2, 3):
        for records in run_distributed(_train_by, 2, stage, optimizer, STORAGES):
            for record in records:
                _assert_alike(record, wanted, relative=1e-5, absolute=1e-5)


def _measure_bytes(rank, world_size, density):
    """Bytes of optimizer state and of gradients on this rank, in a model whose norms weigh little."""
    config = _config(world_size, 1, density=density, update_every=0)
    sections = config.to_dict()
    sections["model"] |= {"hidden_size": 64, "ffn_size": 96}
    config = make_config(sections, {"zero_optimization": {"stage": 1}}, world_size)
    model, sizes = build_model(config), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: sizes.append(parameter.grad.nbytes))
    mesh = init_mesh(config)
    engine = build_engine(config, model, mesh)
    state = optimizer_state(engine)
    state.create()
    train_step(engine, config, mesh, _batches(1, rank, world_size), 1)
    return state.state_bytes(), sum(sizes) / config.accumulation_steps


def test_optimizer_state_and_gradients_shrink_with_density():
    dense = run_distributed(_measure_bytes, 2, 1.0)
    for rank, sizes in enumerate(run_distributed(_measure_bytes, 2, 0.2)):
        for name, size, whole in zip(("optimizer state", "gradients"), sizes, dense[rank], strict=True):
            assert 0.19 < size / whole <= 0.22, f"{name}: {size} of {whole} bytes"


def _check_with_a_corrupted_index(rank, world_size):
    _, model, _, _, updater = _start(_config(world_size))
    updater.check("the start")
    if rank == 1:
        index = weights_of(model)["blocks.1.mlp.up"].index
        free = next(place for place in range(24 * 16) if place not in index[1])
        index[1, 0] = free if free < index[1, 1] else 0
    with pytest.raises(TopologyError) as caught:
        updater.check("the update at step 50")
    return str(caught.value)


def test_a_corrupted_index_stops_all_ranks_with_the_name_of_the_weight():
    messages = run_distributed(_check_with_a_corrupted_index, 2)
    assert messages[0] == messages[1]
    words = messages[0].split()
    assert words[0] == "blocks.1.mlp.up:" and "after the update at step 50" in messages[0]
    low, high = words[words.index("checksums") + 1], words[words.index("checksums") + 3]
    assert len(low) == len(high) == 16 and low != high
    assert "(trail 2, shard 0)" in messages[0]


def _build_and_listen(rank, world_size):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        _start(_config(world_size, 1, "bf16"))  # BF16_Optimizer is the one that says how much memory it uses
    return said.getvalue()


def test_building_an_engine_prints_nothing():
    assert run_distributed(_build_and_listen, 1) == [""]


def _compare_regrowth_gradients(rank, world_size):
    """At the active places, the gradient that regrowth sees is the one that Adam was given: sum, mean, clipping."""
    for regrow_from in ("all", "last_micro_batch"):
        config = _config(world_size, 1, regrow_from=regrow_from, update_every=1)
        mesh, _, engine, door, updater = _start(config)
        batches = [_batches(1, rank, world_size)[0]] * config.accumulation_steps  # alike: the last stands for all
        result = train_step(engine, config, mesh, batches, 1, updater.collects_at(1))
        assert result.grad_norm > config.train.grad_clip
        scale = updater._gradient_scale()
        for name, weight in updater.sparse.items():
            seen = mesh.all_reduce(weight.dense_gradient.clone()) * scale
            given = door.read(weight)["exp_avg"] / (1 - config.train.betas[0])
            at_slots = seen.view(len(weight.trails), -1).gather(1, weight.slot_index())
            assert torch.allclose(at_slots, weight.to_slots(given), rtol=1e-4, atol=1e-6), f"{regrow_from}, {name}"
        updater.skip()
        assert all(weight.dense_gradient is None for weight in updater.sparse.values())
        with pytest.raises(AssertionError, match="has not collected its dense gradient"):
            updater.update(1)


def test_the_regrowth_gradient_is_the_one_that_adam_was_given():
    run_distributed(_compare_regrowth_gradients, 2)


def _skip_a_step(rank, world_size, stage):
    config = _config(world_size, stage)
    mesh, model, engine, door, updater = _start(config)
    before = {name: door.read(weight) for name, weight in weights_of(model).items()}
    batches = _batches(2, rank, world_size)
    if rank == 0:
        batches[0].weights[0, 0] = torch.nan
    result = train_step(engine, config, mesh, batches, 2, updater.collects_at(2))
    assert not result.applied and result.grad_norm == float("inf") and door.step == 0
    updater.skip()
    for name, weight in weights_of(model).items():
        assert all(torch.equal(part, before[name][key]) for key, part in door.read(weight).items()), name
    result = train_step(engine, config, mesh, _batches(3, rank, world_size), 3)
    assert result.applied and result.grad_norm < float("inf") and door.step == 1


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_step_whose_gradients_are_no_numbers_is_skipped(stage):
    run_distributed(_skip_a_step, 2, stage)


def _what_is_collected(rank, world_size):
    answers = {}
    for name, sparsity in {
        "static": {"update_every": 0},
        "SET": {"grow": "random", "new_moments": "zero"},
        "dense": {"density": 1.0},
        "RigL": {"grow": "gradient", "new_moments": "mean"},
    }.items():
        updater = _start(_config(world_size, **sparsity))[-1]
        due = (updater.updates_at(2), updater.collects_at(2), updater.updates_at(3))
        answers[name] = (*due, updater.check("the start"))
    return answers


def test_dense_gradients_are_collected_only_where_an_update_needs_them():
    answers = run_distributed(_what_is_collected, 1)[0]
    assert answers["static"][:3] == (False, False, False)
    assert answers["SET"][:3] == (True, False, False)
    assert answers["dense"] == (False, False, False, "0" * 16)
    assert answers["RigL"][:3] == (True, True, False)
    assert answers["static"][3] == answers["SET"][3] == answers["RigL"][3]
