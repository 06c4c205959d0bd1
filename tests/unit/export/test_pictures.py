"""An export of pictures' models is what the checkpoint is, statistics and classes too, for transformers and Pillow."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, ResNetForImageClassification, pipeline

from nt_dist.errors import ConfigError, RunError
from nt_dist.export import huggingface
from nt_dist.export.huggingface import export, to_transformers
from nt_dist.images.decoding import decode
from nt_dist.inference import load_ensemble
from nt_dist.inference.ensemble import combine
from tests.unit.inference.trained_run import write_pictures_run

PLAIN = {"block": "bottleneck", "stem": "large", "image_size": 36}
CLASSES = ["oak", "elm", "fir", "ash", "4"]


def pictures(side, count=3):
    shape = (count, side, side, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def as_transformers_reads(folder, images):
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return processor(list(images.numpy()), return_tensors="pt", do_resize=False)["pixel_values"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of bottleneck blocks behind the large stem, as transformers' own ResNet has them."""
    run = write_pictures_run(tmp_path_factory.mktemp("plain"), model=PLAIN)
    figures = {"accuracy_trails": [0.5, 0.625, 0.75], "nll_trails": [1.0] * 3, "pictures": 8}
    figures |= {f"{name}_ensemble_{how}": 0.875 for name in ("accuracy", "nll") for how in ("prob", "logit")}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "eval": figures}) + "\n")
    return run


def test_what_is_written(plain, tmp_path):
    export(load_ensemble(plain), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("config.json", "model.safetensors", "README.md", "preprocessor_config.json"),
        "modeling_neurotrails_resnet.py",
    }
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(settings["id2label"].values()) == CLASSES and settings["label2id"]["fir"] == 2
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {name.split(".")[0] for name in state} == {"stem", "trunk", "trails"}
    assert not torch.equal(*(state[f"trails.{trail}.blocks.0.norm1.running_var"] for trail in (0, 1)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "pictures of 36 × 36 pixels, 5 classes" in card
    assert "| mean of probabilities | 87.50% |" in card and "on 8 validation pictures" in card


@pytest.mark.parametrize(
    ("model", "trails"),
    [
        ({}, {}),
        ({"norm_eps": 0.01}, {"fork": "embedding"}),
        (PLAIN | {"block": "basic"}, {"layers": 3}),
        (PLAIN | {"stem": "small", "image_size": 12}, {"fork": "embedding"}),
    ],
    ids=["preactivation", "preactivation, full ensemble", "basic, forked at the stem", "bottleneck, small stem"],
)
def test_every_kind_of_ensemble_is_exported(tmp_path, model, trails):
    ensemble = load_ensemble(write_pictures_run(tmp_path, model=model, trails=trails))
    export(ensemble, tmp_path / "out")
    exported, x = to_transformers(ensemble.model, ensemble.config), pictures(ensemble.config.model.image_size)
    with torch.no_grad():
        answer = exported(as_transformers_reads(tmp_path / "out", x), torch.arange(3), output_trail_logits=True)
    logits = ensemble.logits(x)[:, :, 0]
    torch.testing.assert_close(answer.trail_logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer.logits, combine(logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answer.loss, -combine(logits)[torch.arange(3), torch.arange(3)].mean())


def test_combinations_are_chosen(plain):
    ensemble, x = load_ensemble(plain), pictures(36)
    model, pixels = to_transformers(ensemble.model, ensemble.config), torch.rand(2, 3, 36, 36)
    with torch.no_grad():
        trails = model(pixels, output_trail_logits=True).trail_logits
        assert torch.equal(model(pixels, combine=2).logits, trails[1])
        model.config.combine = "logit"
        torch.testing.assert_close(model(pixels).logits, trails.mean(0))
        with pytest.raises(ValueError, match="combine = 0 must be 'prob', 'logit' or a trail's number from 1 to 3"):
            model(pixels, combine=0)
    assert ensemble.logits(x).shape == (3, 3, 1, 5)


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_a_trail_is_a_plain_resnet_that_the_pipeline_runs(tmp_path, block):
    ensemble = load_ensemble(write_pictures_run(tmp_path, model=PLAIN | {"block": block}))
    export(ensemble, tmp_path / "trail", trail=2)
    assert not list((tmp_path / "trail").glob("*.py"))
    assert "trust_remote_code" not in (tmp_path / "trail" / "README.md").read_text()
    model, x = ResNetForImageClassification.from_pretrained(tmp_path / "trail", local_files_only=True), pictures(36)
    with torch.no_grad():
        found = model(as_transformers_reads(tmp_path / "trail", x)).logits
    torch.testing.assert_close(found, ensemble.logits(x)[1, :, 0], rtol=1e-4, atol=1e-4)
    classify = pipeline("image-classification", model=str(tmp_path / "trail"))
    (best, *_) = classify(Image.fromarray(x[0].numpy()))
    assert best["label"] in CLASSES


def test_bf16_is_compared_with_rounded_weights_and_statistics(plain, tmp_path):
    done = export(load_ensemble(plain), tmp_path / "low", dtype="bfloat16")
    assert done.difference < 1e-4
    state = load_file(tmp_path / "low" / "model.safetensors")
    assert {each.dtype for each in state.values()} == {torch.bfloat16, torch.int64}  # batches seen are counted


def test_what_transformers_has_not_is_refused_by_name(plain, tmp_path):
    ensemble = load_ensemble(write_pictures_run(tmp_path, model={"norm_eps": 0.01}))
    with pytest.raises(ConfigError) as caught:
        export(ensemble, tmp_path / "out", trail=4)
    but = "so --trail cannot be exported; without it, the ensemble can"
    assert str(caught.value).splitlines() == [
        "--trail 4 must be from 1 to trails.count = 3",
        f"model.block = 'preactivation': a ResNetForImageClassification has basic or bottleneck blocks, {but}",
        f"model.stem = 'small': a ResNetForImageClassification has the large stem, {but}",
        f"model.norm_eps = 0.01: a ResNetForImageClassification has 1e-05, {but}",
    ]
    with pytest.raises(ConfigError, match="--sparse is of models that write text: .* model.family = 'resnet'"):
        export(load_ensemble(plain), tmp_path / "out", sparse=True)
    assert not (tmp_path / "out").exists()


def test_statistics_that_are_not_the_checkpoints_leave_nothing(plain, tmp_path, monkeypatch):
    filled = huggingface._filled

    def wrong(model, state):
        mean = state["trails.2.blocks.0.norm1.running_mean"]
        return filled(model, state | {"trails.2.blocks.0.norm1.running_mean": mean + 0.5})

    monkeypatch.setattr(huggingface, "_filled", wrong)
    with pytest.raises(RunError, match="the model's logits differ by .* nothing was exported"):
        export(load_ensemble(plain), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sections", "width", "height"),
    [({"model": {"image_size": 56}, "data": {"crop": "resized"}}, 240, 160), ({}, 8, 8), ({}, 9, 9)],
    ids=["large", "as it is", "small"],
)
def test_the_image_processor_reads_a_picture_as_training_did(tmp_path, sections, width, height):
    ensemble = load_ensemble(write_pictures_run(tmp_path, **sections))
    export(ensemble, tmp_path / "out")
    down, right = np.mgrid[:height, :width]
    smooth = np.stack([127 + 100 * np.sin(down / height * 5), right * 250.0 / width, down * 0.0], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "picture.png")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    (found,) = processor(Image.open(tmp_path / "picture.png"), return_tensors="np")["pixel_values"]
    data = ensemble.config.data
    expected = decode(str(tmp_path / "picture.png"), ensemble.config.model.image_size) / 255
    expected = ((expected - np.array(data.mean)) / np.array(data.std)).transpose(2, 0, 1)
    assert np.abs(found - expected).mean() < 0.01  # cut and scaled, or scaled and cut: some bytes differ by one
