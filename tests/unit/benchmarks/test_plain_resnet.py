"""The opponent of the benchmark of pictures is the same network: same size, loss, gradients, statistics, step."""

import pytest
import torch

from benchmarks.plain_resnet import PlainResNet
from benchmarks.plain_trainer import PlainTrainer
from benchmarks.setup import random_batches
from nt_dist.engine.statistics import update_statistics
from nt_dist.model.losses import objective
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model, statistics_of, weights_of
from tests.unit.resnet.small import small
from tests.unit.resnet.test_resnet import OneRank

NORM = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}


def _config(model=None, trails=None, **train):
    settings = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "objective": "mean", "label_smoothing": 0.1}
    return small(
        model={"norm_batch": 4, **(model or {})},
        trails={"layers": 2, **(trails or {})},
        sparsity={"density": 1.0, "update_every": 0},
        train={**settings, "weight_decay": 1e-3, "decay_vectors": True, "lr": 0.1, "warmup_steps": 0, **train},
    )


def _pairs(config, plain):
    """Yields each parameter and statistic of the plain network with the name and the trail of ours."""

    def of_norm(module, name, trail):
        if module is not None:
            yield from ((getattr(module, theirs), f"{name}.{ours}", trail) for ours, theirs in NORM.items())

    def of_block(block, number, trail):
        name = f"blocks.{number}"
        for place, (convolution, norm) in enumerate(zip(block.convolutions, block.norms, strict=True), 1):
            yield convolution.weight, f"{name}.convolution{place}", trail
            yield from of_norm(norm, f"{name}.norm{place}", trail)
        if block.shortcut is not None:
            yield block.shortcut.weight, f"{name}.shortcut", trail
        yield from of_norm(block.shortcut_norm, f"{name}.shortcut_norm", trail)

    for trail, stem in enumerate(plain.stems):
        yield stem.convolution.weight, "stem.convolution", trail
        yield from of_norm(stem.norm, "stem.norm", trail)
    for number, block in enumerate(plain.trunk):
        yield from of_block(block, number, 0)
    for trail, module in enumerate(plain.trails):
        for number, block in enumerate(module.blocks, config.trunk_layers):
            yield from of_block(block, number, trail)
        yield from of_norm(module.norm, "classifier.norm", trail)
        yield module.classifier.weight, "classifier.matrix", trail
        yield module.classifier.bias, "classifier.bias", trail


def _both(config):
    """Our model and a plain trainer with its weights, which are far from a fresh model's."""
    model, trainer = build_model(config).train(), PlainTrainer(config, torch.device("cpu"))
    ours = weights_of(model) | statistics_of(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for each in ours.values():
            if each.spec.is_vector:
                each.values.uniform_(0.5, 1.5)
        for theirs, name, trail in _pairs(config, trainer.model):
            theirs.copy_(ours[name].values[trail])
    return model, trainer


def _objective(config, model, batch):
    sums = Place().trail_losses(model(batch.inputs), batch.targets, batch.weights, "", config.train.label_smoothing)
    return objective(sums, None) / config.trails.count / batch.weights.sum()


LARGE = {"block": "bottleneck", "stem": "large", "image_size": 32}
CASES = [({}, {}), ({}, {"fork": "embedding"}), ({"block": "basic"}, {}), (LARGE, {})]


@pytest.mark.parametrize(("of_model", "trails"), CASES, ids=["wide", "full", "basic", "bottleneck"])
def test_size_loss_gradients_and_statistics_are_the_trainers(of_model, trails):
    config = _config(of_model, trails)
    model, trainer = _both(config)
    (batch,) = random_batches(config, torch.device("cpu"))
    assert sum(each.numel() for each in trainer.parameters) == sum(each.numel() for each in model.parameters())
    loss, expected = _objective(config, model, batch), trainer.loss(batch, float(batch.weights.sum()))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    update_statistics(statistics_of(model).values(), OneRank(), applied=True)
    ours = weights_of(model) | statistics_of(model)
    seen = set()
    for theirs, name, trail in _pairs(config, trainer.model):
        is_weight = isinstance(theirs, torch.nn.Parameter)
        found = (ours[name].values.grad if is_weight else ours[name].values)[trail]
        wanted = theirs.grad if is_weight else theirs
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        seen.add((name, trail))
    assert seen == {(name, trail) for name, each in ours.items() for trail in range(each.spec.trails)}


def test_a_step_is_sgds():
    config = _config()
    model, trainer = _both(config)
    (batch,) = random_batches(config, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=1e-3)
    for _ in range(2):
        _objective(config, model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.step([batch])
    ours = weights_of(model)
    for theirs, name, trail in _pairs(config, trainer.model):
        if name in ours:
            torch.testing.assert_close(theirs, ours[name].values[trail], atol=1e-4, rtol=1e-3)


def test_bf16_keeps_masters_and_norms_in_fp32():
    config = _config(precision="bf16")
    trainer = PlainTrainer(config, torch.device("cpu"))
    trainer.step(random_batches(config, torch.device("cpu")))
    kinds = {type(module): module.weight.dtype for module in trainer.model.modules() if hasattr(module, "weight")}
    assert kinds[torch.nn.Conv2d] == kinds[torch.nn.Linear] == torch.bfloat16
    assert kinds[torch.nn.BatchNorm2d] == torch.float32
    for master, parameter in zip(trainer.masters, trainer.parameters, strict=True):
        assert master.dtype == torch.float32 and torch.equal(master.to(parameter.dtype), parameter)


def test_a_plain_network_is_in_channels_last():
    weight = PlainResNet(_config()).trunk[0].convolutions[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
