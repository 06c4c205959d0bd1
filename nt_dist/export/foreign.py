"""Checkpoints of other programs, as far as they can be read without running anything: safetensors, or torch's file of
tensors alone.

Two layouts are known: transformers' dense LLaMA, and that of the NeuroTrails paper's code (arXiv 2505.17909).
"""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nt_dist.config import Config
from nt_dist.errors import CheckpointError
from nt_dist.export.names import LLAMA, PAPER, shared_settings
from nt_dist.model.weights import real_shape, weight_specs
from nt_dist.sparsity.spec import WeightSpec

_HEAD = re.compile(r"head_model_(\d+)\.")
_NO_WEIGHT = re.compile(r"rotary_emb\.|\.inv_freq$")
Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint: its folder, its config.json, the shape of every tensor by key, what reads one by key."""

    path: Path
    settings: dict[str, Any]
    shapes: Shapes
    read: Read
    heads: tuple[int, ...]
    """The numbers of the paper's trails, in order; none in a dense LLaMA."""

    def key(self, config: Config, spec: WeightSpec, trail: int) -> str:
        """Return the key of what a weight's trail is taken from; every trail of ours from the same dense blocks."""
        if self.heads:
            return PAPER.key(config, spec.name, self.heads[trail])
        key = LLAMA.key(config, spec.name)
        tied = spec.name == "output" and key not in self.shapes and self.settings.get("tie_word_embeddings")
        return LLAMA.key(config, "embedding") if tied else key


def open_foreign(path: Path) -> Foreign:
    """Open a folder with config.json and *.safetensors, or, in the paper's layout, pytorch_model.bin.

    Raises:
        CheckpointError: It cannot be read, is in no known layout, or would run code.
    """
    try:
        settings = json.loads((path / "config.json").read_bytes())
        if not isinstance(settings, dict):
            raise ValueError("it must hold an object")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"--model {path}: config.json cannot be read: {reason}") from None
    files, pickled = sorted(path.glob("*.safetensors")), path / "pytorch_model.bin"
    if not files and not pickled.is_file():
        raise CheckpointError(f"--model {path}: holds no *.safetensors and no pytorch_model.bin")
    shapes, read = _safetensors(files) if files else _pickled(pickled)
    shapes = {name: shape for name, shape in shapes.items() if not _NO_WEIGHT.search(name)}
    heads = tuple(sorted({int(found[1]) for name in shapes if (found := _HEAD.match(name))}))
    if not heads and "model.embed_tokens.weight" not in shapes:
        raise CheckpointError(
            f"--model {path}: neither a LLaMA (model.embed_tokens.weight) nor in the layout of the paper's code "
            f"(backbone_model.…, head_model_<number>.…); its first tensors: {', '.join(sorted(shapes)[:3])}"
        )
    if not heads and not files:
        raise CheckpointError(f"--model {path}: a dense LLaMA is read from *.safetensors only")
    return Foreign(path, settings, shapes, read, heads)


def _safetensors(files: list[Path]) -> tuple[Shapes, Read]:
    shapes, opened = {}, {}
    for file in files:
        try:
            tensors = safe_open(file, framework="pt")
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                shapes[name], opened[name] = tuple(tensors.get_slice(name).get_shape()), tensors
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
    return shapes, lambda name: opened[name].get_tensor(name)


def _pickled(file: Path) -> tuple[Shapes, Read]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{file}: is no file of tensors alone: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise CheckpointError(f"{file}: must hold a state dict, tensors by name")
    return {name: tuple(each.shape) for name, each in tensors.items()}, tensors.__getitem__


def problems(foreign: Foreign, config: Config) -> list[str]:
    """Return everything in which a foreign checkpoint is not the model of ``config``, key, value and rule each."""
    return _settings_problems(foreign, config) or _tensor_problems(foreign, config)


def _settings_problems(foreign: Foreign, config: Config) -> list[str]:
    theirs, trails, file = foreign.settings, config.trails, foreign.path / "config.json"
    rope = theirs.get("rope_parameters") or {}
    defaults = {
        "num_key_value_heads": theirs.get("num_attention_heads"),
        "rms_norm_eps": 1e-6,
        "rope_theta": rope.get("rope_theta", 10000.0),
    }
    ours = {f"model.{key}": size for key, size in shared_settings(config).items()}
    if foreign.heads:
        ours["trails.count"] = ("num_ensemble", trails.count)
        ours["trails.layers"] = ("blocks_in_head", config.model.num_layers - config.trunk_layers)
    found = []
    for key, (name, value) in ours.items():
        expected = defaults.get(name) if theirs.get(name) is None else theirs[name]
        if expected is None:
            found.append(f"{file}: has no {name}")
        elif value != expected:
            found.append(f"{key} = {value} must be {expected}, the {name} of the imported model")
    scaling = theirs.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    rules = {
        f"{file}: rope_scaling = {scaling} is not supported": not scaling,
        f"{file}: attention_bias and mlp_bias must be false: there are no biases": not (
            theirs.get("attention_bias") or theirs.get("mlp_bias")
        ),
        "trails.final_norm_twice = false must be true: in the paper's code each trail's final norm runs twice": (
            trails.final_norm_twice or not foreign.heads
        ),
        f"trails.fork = {trails.fork!r} must be 'blocks' for a model in the paper's layout": (
            trails.fork == "blocks" or not foreign.heads
        ),
        "trails.final_norm_twice = true must be false: a LLaMA's final norm runs once": (
            not trails.final_norm_twice or foreign.heads
        ),
    }
    return found + [rule for rule, holds in rules.items() if not holds]


def _tensor_problems(foreign: Foreign, config: Config) -> list[str]:
    if foreign.heads and len(foreign.heads) != config.trails.count:
        return [f"trails.count = {config.trails.count} must be {len(foreign.heads)}, the head_model_… there are"]
    there, path = foreign.shapes, foreign.path
    expected = {
        foreign.key(config, spec, trail): real_shape(spec)
        for spec in weight_specs(config).values()
        for trail in range(spec.trails)
    }
    found = [f"{path}: has no tensor {name}" for name in expected if name not in there]
    found += [
        f"{path}: {name} has shape {list(there[name])}, must have {list(shape)}"
        for name, shape in expected.items()
        if there.get(name, shape) != shape
    ]
    if strangers := sorted(there.keys() - expected):
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        found.append(f"{path}: has tensors of another model: {', '.join(strangers[:3])}{more}")
    return found
