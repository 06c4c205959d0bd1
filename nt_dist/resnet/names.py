"""What weights, statistics and sizes of this package's ResNet are called in transformers.

nt_dist/export/hf/modeling_neurotrails_resnet.py, which may import nothing of this package, has :func:`ensemble_key`'s
names as attributes; an export loads them strictly.
"""

from collections.abc import Iterator
from typing import Any

from nt_dist.config.family import Twin
from nt_dist.config.settings import Config

NORM_EPS = 1e-5
"""Of every batch norm of transformers' ResNet, which has no setting for it."""
_IN_NORM = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}


def shared_settings(config: Config) -> dict[str, tuple[str, Any]]:
    """Return what ``[model]`` shares with transformers' config.json: by our key, their name and the value."""
    model = config.model
    return {
        "model.block": ("layer_type", model.block),
        "model.depths": ("depths", list(model.depths)),
        "model.stem_width": ("embedding_size", model.stem_width),
        "model.num_classes": ("num_labels", model.num_classes),
    }


def hidden_sizes(config: Config) -> list[int]:
    """Return the channels that each stage gives."""
    return [(config.model.width << stage) * config.model.expansion for stage in range(len(config.model.depths))]


def ensemble_settings(config: Config) -> dict[str, Any]:
    """Return what ``[model]`` shares with an exported ensemble's config.json, under the same names."""
    names = ("block", "depths", "width", "stem", "stem_width", "image_size", "norm_eps")
    return {name: getattr(config.model, name) for name in names} | {"depths": list(config.model.depths)}


def twin(config: Config, one_trail: bool) -> Twin:
    model = config.model
    if one_trail:
        sizes = dict(shared_settings(config).values()) | {"hidden_sizes": hidden_sizes(config)}
        return Twin({"model_type": "resnet", **sizes}, trail_key)
    settings = ensemble_settings(config) | {
        "num_labels": model.num_classes,
        "num_trails": config.trails.count,
        "trail_layers": model.num_layers - config.trunk_layers,
        "fork_at_embedding": config.trails.fork == "embedding",
        "auto_map": {
            "AutoConfig": "modeling_neurotrails_resnet.NeuroTrailsResNetConfig",
            "AutoModelForImageClassification": "modeling_neurotrails_resnet.NeuroTrailsForImageClassification",
        },
    }
    return Twin(settings, ensemble_key)


def trail_problems(config: Config) -> Iterator[str]:
    model, but = config.model, "so --trail cannot be exported; without it, the ensemble can"
    if model.block == "preactivation":
        yield f"model.block = 'preactivation': a ResNetForImageClassification has basic or bottleneck blocks, {but}"
    if model.stem != "large":
        yield f"model.stem = {model.stem!r}: a ResNetForImageClassification has the large stem, {but}"
    if model.norm_eps != NORM_EPS:
        yield f"model.norm_eps = {model.norm_eps:g}: a ResNetForImageClassification has {NORM_EPS:g}, {but}"


def _parts(name: str) -> tuple[str, str, str]:
    """Return a name's layer, the module in it ("" for the classifier's matrix and bias), and that one's attribute."""
    *path, last = name.split(".")
    if last in _IN_NORM:
        last = _IN_NORM[last]
    elif path == ["classifier"]:
        path, last = [*path, ""], {"matrix": "weight", "bias": "bias"}[last]
    else:
        path, last = [*path, last], "weight"
    return ".".join(path[:-1]), path[-1], last


def trail_key(config: Config, name: str, trail: int = 0) -> str:
    """Return what transformers' ResNetForImageClassification, a trunk with one trail, calls a weight or statistic."""
    layer, part, last = _parts(name)
    if layer == "classifier":
        return f"classifier.1.{last}"
    kind = "normalization" if "norm" in part else "convolution"
    if layer == "stem":
        return f"resnet.embedder.embedder.{kind}.{last}"
    stage, number = 0, int(layer.removeprefix("blocks."))
    while number >= config.model.depths[stage]:
        number -= config.model.depths[stage]
        stage += 1
    place = "shortcut" if part.startswith("shortcut") else f"layer.{int(part[-1]) - 1}"
    return f"resnet.encoder.stages.{stage}.layers.{number}.{place}.{kind}.{last}"


def ensemble_key(config: Config, name: str, trail: int = 0) -> str:
    """Return what our NeuroTrailsForImageClassification calls a weight or statistic of a trail."""
    layer, part, last = _parts(name)
    if layer == "classifier":
        return f"trails.{trail}.{part or 'classifier'}.{last}"
    if layer == "stem":
        return f"stem.{trail}.{part}.{last}"
    number = int(layer.removeprefix("blocks."))
    behind = number - config.trunk_layers
    place = f"trunk.{number}" if behind < 0 else f"trails.{trail}.blocks.{behind}"
    return f"{place}.{part}.{last}"
