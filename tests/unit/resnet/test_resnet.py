"""A dense ResNet of one trail is transformers'; a Wide ResNet is the plain one of this file; sizes are the paper's."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from nt_dist.engine.statistics import update_statistics
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model, statistics_of, weights_of
from nt_dist.model.weights import choose_storages, count_parameters, weight_specs
from nt_dist.planning.local_layers import layer_parts
from tests.unit.resnet.small import small


class OneRank:
    """A mesh of one rank."""

    splits_trunk = cuts_sequence = gathers_again = False
    data = trail = type("Axis", (), {"degree": 1})

    def sample_axes(self, in_trail):
        return ("data",)

    def all_reduce(self, tensor, axes=(), op="sum"):
        return tensor

    broadcast = all_reduce


def pictures(count, side, seed=0):
    return torch.randint(256, (count, side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normalized(bytes_of, config):
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    return ((bytes_of / 255 - mean) / std).permute(0, 3, 1, 2)


NORM = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}


def name_in_transformers(name, config):
    """The name in transformers' ResNet of one of our weights or statistics."""
    head, _, tail = name.partition(".")
    if head == "classifier":
        return {"matrix": "classifier.1.weight", "bias": "classifier.1.bias"}[tail]
    if head == "stem":
        prefix = "resnet.embedder.embedder"
    else:
        number, _, tail = tail.partition(".")
        stage, left = 0, int(number)
        while left >= config.model.depths[stage]:
            left -= config.model.depths[stage]
            stage += 1
        prefix = f"resnet.encoder.stages.{stage}.layers.{left}"
        kind, _, rest = tail.partition(".")
        if kind.startswith("shortcut"):
            prefix, tail = f"{prefix}.shortcut", kind.replace("shortcut_", "") + (f".{rest}" if rest else "")
        else:
            prefix, tail = f"{prefix}.layer.{int(kind[-1]) - 1}", kind[:-1] + (f".{rest}" if rest else "")
    if tail in ("convolution", "shortcut"):
        return f"{prefix}.convolution.weight"
    return f"{prefix}.normalization.{NORM[tail.split('.')[-1]]}"


def compare_with(other, name_of, config, x, targets):
    """Compare logits, gradients and running statistics with those of a module, whose parameters become ours."""
    torch.manual_seed(0)
    model, found = build_model(config).train(), dict(other.named_parameters()) | dict(other.named_buffers())
    with torch.no_grad():
        for name, weight in (weights_of(model) | statistics_of(model)).items():
            theirs = found[name_of(name)]
            theirs.copy_(torch.rand(theirs.shape) + 0.5 if theirs.ndim == 1 else torch.randn(theirs.shape) * 0.1)
            weight.values.copy_(theirs[None])
    assert sum(each.numel() for each in model.parameters()) == sum(each.numel() for each in other.parameters())
    logits, expected = model(x)[0, :, 0], other(normalized(x, config))
    expected = getattr(expected, "logits", expected)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    F.cross_entropy(logits, targets).backward()
    F.cross_entropy(expected, targets).backward()
    update_statistics(statistics_of(model).values(), OneRank(), applied=True)
    for name, weight in weights_of(model).items():
        theirs = found[name_of(name)].grad
        torch.testing.assert_close(weight.values.grad[0], theirs, rtol=1e-4, atol=1e-6)
    for name, statistic in statistics_of(model).items():
        torch.testing.assert_close(statistic.values[0], found[name_of(name)], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.eval()(x)[0, :, 0], getattr(y := other.eval()(normalized(x, config)), "logits", y))


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_one_dense_trail_is_transformers_resnet(block):
    model = {"block": block, "stem": "large", "width": 16, "stem_width": 16, "depths": [1, 2], "image_size": 36}
    config = small(model=model | {"norm_batch": 4}, trails={"count": 1}, sparsity={"density": 1.0})
    sizes = [16 * config.model.expansion, 32 * config.model.expansion]
    theirs = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16, hidden_sizes=sizes, depths=[1, 2], layer_type=block, num_labels=5, hidden_act="relu"
        )
    ).train()
    compare_with(theirs, lambda name: name_in_transformers(name, config), config, pictures(4, 36), torch.arange(4))


class PlainBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x):
        y = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(y)
        return beside + self.convolution2(F.relu(self.norm2(self.convolution1(y))))


class PlainWideResNet(nn.Module):
    """A Wide ResNet of the small config's shape, of torch's own layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(PlainBlock(8, 8, 1), PlainBlock(8, 16, 2), PlainBlock(16, 16, 1))
        self.norm, self.matrix = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        return self.matrix(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


def name_in_plain(name):
    *path, last = name.split(".")
    if name.startswith("classifier.") and last in ("matrix", "bias"):
        return {"matrix": "matrix.weight", "bias": "matrix.bias"}[last]
    path = [each for each in path if each != "classifier"]
    if last in NORM and path:
        return ".".join([*path, NORM[last]])
    return "stem.weight" if name == "stem.convolution" else f"{name}.weight"


def test_one_dense_trail_is_a_plain_wide_resnet():
    config = small(trails={"count": 1}, sparsity={"density": 1.0}, model={"norm_batch": 4})
    compare_with(PlainWideResNet().train(), name_in_plain, config, pictures(4, 8), torch.arange(4))


PAPER = {"distribution": "erk"}
RESNET50 = {"family": "resnet"}
WRN = {"family": "resnet", "block": "preactivation", "stem": "small", "stem_width": 16, "width": 160, "image_size": 32}
WRN |= {"depths": [4, 4, 4], "num_classes": 100}


@pytest.mark.parametrize(
    ("model", "trails", "density", "dense", "stored"),
    [
        (RESNET50, {"count": 1, "layers": 10}, 1.0, 25_557_032, 25_557_032),
        (RESNET50, {"count": 3, "layers": 10}, 0.3, 74.34e6, 22.26e6),
        (WRN, {"count": 3, "layers": 8}, 0.2, 106.3e6, 21.3e6),
    ],
    ids=["ResNet-50", "NeuroTrails ResNet-50", "NeuroTrails WRN-28-10"],
)
def test_parameters_are_those_of_the_public_code(model, trails, density, dense, stored):
    """Its stored weights leave out the vectors, which are dense."""
    config = small(model=SMALL_OFF | model, trails=trails, sparsity={"density": density})
    assert count_parameters(config)["dense"] == pytest.approx(dense, rel=1e-3)
    kept = [spec for spec in weight_specs(config).values() if density == 1 or not spec.is_vector]
    assert sum(spec.trails * spec.total_slots() for spec in kept) == pytest.approx(stored, rel=3e-3)


SMALL_OFF = {
    "block": "bottleneck",
    "stem": "large",
    "stem_width": 64,
    "width": 64,
    "depths": [3, 4, 6, 3],
    "num_classes": 1000,
    "image_size": 224,
}


def kaiming(weight):
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


@pytest.mark.parametrize("init, begin", [("kaiming", kaiming), ("torch", lambda weight: None)])
def test_convolutions_start_with_the_spread_that_torchs_have(init, begin):
    torch.manual_seed(0)
    model = build_model(small(model={"init": init, "width": 64, "stem_width": 64}, sparsity={"density": 1.0}))
    checked = [each for each in weights_of(model).values() if each.spec.role == "convolution"]
    for ours in checked:
        outputs, inputs, kernel, _ = ours.spec.shape
        theirs = nn.Conv2d(inputs, outputs, kernel)
        begin(theirs.weight)
        torch.testing.assert_close(ours.dense()[0].std(), theirs.weight.detach().std(), rtol=0.05, atol=0)
    assert len(checked) > 4


def test_trails_have_their_own_statistics_and_the_trunk_one():
    model = build_model(small()).train()
    model(pictures(4, 8))
    update_statistics(statistics_of(model).values(), OneRank(), applied=True)
    mean = statistics_of(model)["classifier.norm.mean"].values
    assert mean.shape == (3, 16) and not torch.equal(mean[0], mean[1])
    assert statistics_of(model)["blocks.0.norm1.mean"].values.shape == (1, 8)


def test_a_steps_statistics_are_the_means_over_its_batches():
    model = build_model(small()).train()
    some = [statistics_of(model)[f"blocks.0.norm1.{name}"] for name in ("mean", "variance")]

    def step_means(*batches):
        for each in some:
            each.clear()
        for batch in batches:
            model(batch)
        return torch.stack([each.step_mean for each in some])

    batches = [pictures(4, 8, seed) for seed in range(3)]
    alone = torch.stack([step_means(batch) for batch in batches])
    assert not torch.allclose(alone[0], alone[1])
    for count in (3, 2):  # the second step knows nothing of the first
        torch.testing.assert_close(step_means(*batches[:count]), alone[:count].mean(0))


def test_a_step_that_was_not_applied_leaves_statistics_alone():
    model = build_model(small()).train()
    model(pictures(4, 8))
    update_statistics(statistics_of(model).values(), OneRank(), applied=False)
    assert all(
        (each.values == (1.0 if each.spec.init is None else 0.0)).all() for each in statistics_of(model).values()
    )
    assert all(each.step_mean is None for each in statistics_of(model).values())


def test_other_pictures_of_a_micro_batch_change_nothing_beyond_their_own_norm_batch():
    model, x = build_model(small()).train(), pictures(4, 8)
    whole = model(x)
    changed = x.clone()
    changed[2:] = pictures(2, 8, seed=1)
    parts = model(changed)
    assert torch.equal(parts[:, :2], whole[:, :2]) and not torch.equal(parts[:, 2:], whole[:, 2:])


def test_computing_blocks_again_gives_the_same_gradients_and_statistics():
    found = []
    for again in (False, True):
        model = build_model(small(train={"activation_checkpointing": again})).train()
        Place().trail_losses(model(pictures(4, 8)), torch.arange(4)[:, None], torch.ones(4, 1)).sum().backward()
        update_statistics(statistics_of(model).values(), OneRank(), applied=True)
        values = [each.values.grad for each in weights_of(model).values()]
        found.append(values + [each.values for each in statistics_of(model).values()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_every_parameter_of_a_cast_model_computes_in_bf16_and_statistics_stay_exact():
    model = build_model(small()).bfloat16().train()
    logits = model(pictures(4, 8))
    assert logits.dtype == torch.bfloat16
    update_statistics(statistics_of(model).values(), OneRank(), applied=True)
    assert all(each.values.dtype == torch.float32 for each in statistics_of(model).values())
    reference = build_model(small()).train()
    reference(pictures(4, 8))
    update_statistics(statistics_of(reference).values(), OneRank(), applied=True)
    for name, statistic in statistics_of(model).items():
        torch.testing.assert_close(statistic.values, statistics_of(reference)[name].values, rtol=0.05, atol=0.02)
    assert model.eval()(pictures(4, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("block", ["preactivation", "basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["small", "large"])
def test_what_is_kept_for_backward_is_the_formula_to_the_byte(block, stem):
    """Of all layers together: what one gives and the next one keeps is one tensor. Vectors are left out."""
    config = small(model={"block": block, "stem": stem, "image_size": 16})
    model, batch, side = build_model(config), config.train.micro_batch_size, config.model.image_size
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.dim() > 1:
            kept[storage.data_ptr()] = storage  # and so no address is used again
        return tensor

    shown = pictures(batch, side)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(shown)
    said = sum(layer.kept_bytes for layer in layer_parts(config))
    assert said == sum(storage.nbytes() for storage in kept.values()) + shown.nbytes


def test_wide_convolutions_of_groups_at_low_densities_take_their_own_product():
    model = {"width": 128, "depths": [1], "image_size": 5}
    sparsity = {"density": 0.1, "structure": "groups", "group_size": 128, "topology_shards": 1, "storage": "auto"}
    config = small(model=model, sparsity={**sparsity, "distribution": "uniform"}, trails={"count": 2, "layers": 1})
    storages = choose_storages(config)
    assert storages["blocks.0.convolution2"] == "grouped" and storages["blocks.0.convolution1"] != "grouped"
    found = []
    for storage in ("auto", "masked"):
        own = replace(config, sparsity=replace(config.sparsity, storage=storage))
        network = build_model(own)
        weight = weights_of(network)["blocks.0.convolution2"]
        logits = network.train()(pictures(4, 5))
        logits.square().sum().backward()
        found.append((logits.detach(), weight.to_slots(weight.values.grad)))
        if storage == "auto":
            assert "GroupedConvolution" in _functions(logits.grad_fn)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _functions(node):
    """Names of all steps of a backward pass."""
    names, waiting, seen = set(), [node], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name().removesuffix("Backward"))
            waiting += [each for each, _ in node.next_functions]
    return names


def test_only_a_first_pass_brings_colors_to_the_device():
    stem = build_model(small())[0]
    stem(pictures(2, 8))
    with mock.patch.object(torch, "tensor", side_effect=AssertionError("numbers were copied to the device")):
        stem(pictures(2, 8))
