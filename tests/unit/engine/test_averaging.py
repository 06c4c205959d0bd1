"""Averages of weights, held against torch's, and what an update, an evaluation and a checkpoint do with them."""

from types import SimpleNamespace

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nt_dist.engine.averaging import average_share, average_weights, averaged
from nt_dist.engine.optimizer_state import PlainState
from nt_dist.families import make_config
from nt_dist.model.trails import build_model, statistics_of, weights_of
from nt_dist.sparsity.update import TopologyUpdate
from tests.unit.resnet.small import small


def state_of(config, model):
    """The door to an optimizer that has made no step."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    engine = SimpleNamespace(optimizer=optimizer, basic_optimizer=optimizer, moments=config.train.moments)
    state = PlainState(engine)
    state.create()
    return state


def moved(model, step):
    """Move all that is trained as a step would, to values that the step's number draws."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for each in (*weights_of(model).values(), *statistics_of(model).values()):
            each.values.add_(torch.randn(each.values.shape, generator=generator))


@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_it_is_torchs_average_of_the_last_iterates_with_statistics(decay):
    config = small(train={"steps": 20, "warmup_steps": 0, "average_decay": decay, "average_from": 0.5})
    model = build_model(config)
    state = state_of(config, model)
    mean = AveragedModel(model, use_buffers=True)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    for step in range(1, 21):
        moved(model, step)
        average_weights(config, model, state, step)
        if step > 10:
            mean.update_parameters(model)
        if step == 15:  # the mean of 1 / (1 - decay) iterates, with which the exponential average goes on
            ema.module.load_state_dict(mean.module.state_dict())
            ema.n_averaged += 1
        if step > 15:
            ema.update_parameters(model)
    expected = mean if decay == 1 else ema
    with averaged(model, state):
        found = {name: each.clone() for name, each in model.state_dict().items()}
    for name, tensor in expected.module.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_shares():
    config = make_config({"train": {"steps": 100, "average_decay": 0.75, "average_from": 0.9}})
    assert [average_share(config, step) for step in (1, 90, 91, 92, 93, 94, 95, 100)] == [
        1,
        1,
        1,
        1 / 2,
        1 / 3,
        *[0.25] * 3,
    ]


def test_what_is_trained_is_there_again_to_the_bit_after_an_evaluation():
    config = small(train={"average_decay": 0.9, "average_from": 0.0})
    model = build_model(config)
    state = state_of(config, model)
    for step in (1, 2):
        moved(model, step)
        average_weights(config, model, state, step)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with averaged(model, state):
        assert not any(torch.equal(each, before[name]) for name, each in model.state_dict().items() if "values" in name)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    averages = {name: state.read(weight)["average"] for name, weight in weights_of(model).items()}
    assert not any(torch.equal(each, weights_of(model)[name].values) for name, each in averages.items())


def test_until_it_begins_and_where_there_is_none_evaluations_take_the_weights():
    for train in ({"average_decay": 0.9}, {}):
        config = small(train={"steps": 8, "warmup_steps": 0, **train})
        model = build_model(config)
        state = state_of(config, model)
        moved(model, 1)
        average_weights(config, model, state, 1)
        before = {name: each.clone() for name, each in model.state_dict().items()}
        with averaged(model, state):
            assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("storage", ["compact", "masked"])
def test_a_slot_with_a_new_place_begins_anew(storage):
    train = {"average_decay": 1.0, "average_from": 0.0}
    config = make_config({"sparsity": {"density": 0.5, "storage": storage}, "train": train})
    model = build_model(config)
    state, weight = state_of(config, model), weights_of(model)["blocks.0.mlp.up"]
    moved(model, 1)
    weight.values.data = weight.from_slots(weight.to_slots(weight.values.data))
    average_weights(config, model, state, 1)

    def dense():
        filled = weight.from_slots(torch.ones(1, weight.num_slots))
        return [weight.build(each)[0] for each in (filled, state.read(weight)["average"])]

    (was, old), kept = dense(), state.read(weight)
    gradient = torch.randn(1, *weight.local_shape, generator=torch.Generator().manual_seed(0))
    assert TopologyUpdate(weight, kept, gradient, config.sparsity, 0, 1, 0.3).apply() > 0
    state.write(weight, kept)
    is_active, average = dense()
    stays = (was * is_active).bool()
    assert torch.equal(average[stays], old[stays]) and (old[stays] != 0).all()
    assert (average[~stays] == 0).all() and is_active.sum() > stays.sum()
