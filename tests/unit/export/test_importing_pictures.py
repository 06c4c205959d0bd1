"""A dense ResNet becomes step 0 of a run: the same function where nothing is pruned, statistics and all."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from nt_dist.errors import CheckpointError, ConfigError, DataError
from nt_dist.export.huggingface import export
from nt_dist.export.importing import check, fill, import_run, open_foreign
from nt_dist.families import DEFAULT, FAMILIES
from nt_dist.inference import load_ensemble
from nt_dist.model.trails import build_model, statistics_of, weights_of
from tests.unit.checkpoint.checkpoint_case import on_one_rank
from tests.unit.inference.trained_run import write_pictures_run
from tests.unit.resnet.small import small

RESNET = FAMILIES["resnet"]
MODEL = {"block": "bottleneck", "stem": "large", "width": 4, "image_size": 36}


def config_of(**sections):
    return small(**{**sections, "model": MODEL | sections.get("model", {})})


def resnet(**settings):
    """A dense ResNet of MODEL's sizes with clearly different weights and statistics."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 5, **settings}
    model = ResNetForImageClassification(ResNetConfig(**sizes)).eval().requires_grad_(False)
    for name, values in model.state_dict().items():
        if name.endswith("running_var") or ("normalization" in name and name.endswith("weight")):
            values.uniform_(0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            values.uniform_(-0.5, 0.5)
    return model


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A folder with a dense ResNet, and the model."""
    folder, model = tmp_path_factory.mktemp("resnet"), resnet()
    model.save_pretrained(folder)
    return folder, model


def filled(folder, config, noise=0.0):
    model = build_model(config, device="meta").to_empty(device="cpu").requires_grad_(False)
    return model.eval(), fill(model, open_foreign(folder, RESNET), config, noise)


def logits_of(model, config):
    """Ours for bytes, and what to give to another model for them."""
    pictures = torch.randint(256, (2, 36, 36, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    return model(pictures)[:, :, 0], ((pictures / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize("trails", [{}, {"fork": "embedding"}], ids=["trunk", "full ensemble"])
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_every_trail_of_density_one_is_the_dense_model(tmp_path, block, trails):
    hidden = [16, 32] if block == "bottleneck" else [4, 8]
    theirs = resnet(layer_type=block, hidden_sizes=hidden)
    theirs.save_pretrained(tmp_path)
    config = config_of(model={"block": block}, sparsity={"density": 1.0}, trails=trails)
    check(open_foreign(tmp_path, RESNET), config, 0.0)
    model, (kept, found, lost) = filled(tmp_path, config)
    logits, pixels = logits_of(model, config)
    for trail in logits:
        torch.testing.assert_close(trail, theirs(pixels).logits, rtol=1e-4, atol=1e-4)
    assert kept == found and lost == 0


def test_the_largest_weights_stay_and_noise_is_of_the_trails_matrices(dense):
    folder, theirs = dense
    model, (kept, found, lost) = filled(folder, config_of(sparsity={"topology_shards": 1}))
    weight = weights_of(model)["blocks.2.convolution2"]
    whole = theirs.state_dict()["resnet.encoder.stages.1.layers.1.layer.1.convolution.weight"]
    least = whole.abs().flatten().sort(descending=True).values[weight.spec.total_slots() - 1]
    for trail in weight.dense():
        torch.testing.assert_close(trail, whole.where(whole.abs() >= least, 0.0))
    assert weight.spec.is_sparse and 0.4 * found < kept < 0.6 * found and lost > 0
    noisy = weights_of(filled(folder, config_of(sparsity={"density": 1.0}), 0.1)[0])
    assert not torch.equal(*noisy["blocks.2.convolution2"].values[:2])
    norm = theirs.state_dict()["resnet.encoder.stages.1.layers.1.layer.1.normalization.weight"]
    assert all(torch.equal(each, norm) for each in noisy["blocks.2.norm2.scale"].values)


def test_a_config_of_another_model_is_refused_with_every_difference(dense, tmp_path):
    other = {"block": "preactivation", "stem": "small", "width": 8, "depths": [3], "num_classes": 7, "norm_eps": 0.01}
    config = small(model=other | {"image_size": 8})
    with pytest.raises(ConfigError) as caught:
        check(open_foreign(dense[0], RESNET), config, -1.0)
    assert str(caught.value).splitlines() == [
        "model.block = preactivation must be bottleneck, the layer_type of the imported model",
        "model.depths = [3] must be [1, 2], the depths of the imported model",
        "model.num_classes = 7 must be 5, the num_labels of the imported model",
        "model.width = 8 must be 4 for hidden_sizes = [16, 32] of the imported model",
        "model.stem = 'small' must be 'large': a ResNetForImageClassification has no other",
        "model.norm_eps = 0.01 must be 1e-05, which transformers' batch norms add",
        "--noise -1 must be at least 0",
    ]
    resnet(hidden_sizes=[16, 48], downsample_in_bottleneck=True, hidden_act="gelu").save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check(open_foreign(tmp_path, RESNET), config_of(), 0.0)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/config.json: hidden_sizes = [16, 48] must double from stage to stage",
        f"{tmp_path}/config.json: hidden_act = 'gelu' must be 'relu': there is nothing else",
        f"{tmp_path}/config.json: downsample_in_bottleneck = True must be False: there is nothing else",
    ]
    settings = json.loads((dense[0] / "config.json").read_text()) | {"model_type": "regnet"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="model_type = 'regnet' must be 'resnet'"):
        check(open_foreign(tmp_path, RESNET), config_of(), 0.0)


def test_a_model_of_the_other_family_is_named_as_none(dense):
    with pytest.raises(CheckpointError, match=r"neither a LLaMA .*; its first tensors: classifier.1.bias"):
        open_foreign(dense[0], DEFAULT)
    (dense[0].parent / "empty").mkdir()
    (dense[0].parent / "empty" / "config.json").write_text("{}")
    torch.save({"fc.weight": torch.zeros(1)}, dense[0].parent / "empty" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither a ResNetFor.* nor an exported .*; its first tensors: fc.w"):
        open_foreign(dense[0].parent / "empty", RESNET)


def classes_of(names):
    """Opened pictures of these classes."""
    return SimpleNamespace(identity={"classes": names})


def test_classes_in_another_order_and_other_colours_are_refused(dense, tmp_path):
    names = ["ant", "bee", "cat", "dog", "emu"]
    for file in dense[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text()) | {"id2label": dict(enumerate(names))}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    foreign, config = open_foreign(tmp_path, RESNET), config_of()
    foreign.check_data(config, classes_of(names))
    foreign.check_data(config, classes_of(["n01", "n02", "n03", "n04", "n05"]))  # nobody can tell
    foreign.check_data(config, classes_of([]))
    with pytest.raises(DataError, match="class 1 is 'cat', the imported model's 'bee': they must be in the same order"):
        foreign.check_data(config, classes_of(["ant", "cat", "bee", "dog", "emu"]))
    processor = {"image_mean": list(config.data.mean), "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(DataError, match=r"data.std = \[.*\] is not the imported model's; set data.std=\[0.5, 0.5, 0.5"):
        foreign.check_data(config, classes_of(names))


def test_an_import_starts_a_run_with_the_models_statistics(dense, tmp_path):
    config = config_of(run={"dir": str(tmp_path / "run")}, train={"optimizer": "sgd", "momentum": 0.9})
    data = SimpleNamespace(digest="pictures", identity={"classes": ["0"]})
    path, _ = on_one_rank(lambda mesh: import_run(open_foreign(dense[0], RESNET), config, mesh, data))
    ensemble = load_ensemble(tmp_path / "run")
    assert ensemble.checkpoint == path and ensemble.manifest.training_state.step == 0
    expected = filled(dense[0], config)[0]
    for name, statistic in statistics_of(expected).items():
        assert torch.equal(statistics_of(ensemble.model)[name].values, statistic.values)
    pictures = torch.zeros(2, 36, 36, 3, dtype=torch.uint8)
    torch.testing.assert_close(ensemble.logits(pictures), expected(pictures))


def test_an_exported_ensemble_comes_back_with_its_statistics(tmp_path):
    ensemble = load_ensemble(write_pictures_run(tmp_path))
    export(ensemble, tmp_path / "out")
    foreign = open_foreign(tmp_path / "out", RESNET)
    check(foreign, small(), 0.0)
    model, (kept, found, lost) = filled(tmp_path / "out", small())
    pictures = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(model(pictures), ensemble.logits(pictures)) and kept == found and lost == 0
    with pytest.raises(ConfigError) as caught:
        check(foreign, small(model={"depths": [1, 3], "num_classes": 7}, trails={"fork": "embedding"}), 0.0)
    assert str(caught.value).splitlines()[:2] == [
        "model.depths = [1, 3] must be [1, 2], the depths of the imported model",
        "model.num_classes = 7 must be 5, the num_labels of the imported model",
    ]
    assert "trails.fork = 'embedding' must be 'blocks', as in the export" in str(caught.value)
