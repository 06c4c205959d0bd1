"""Checkpoints of other programs, as far as they can be read without running anything: safetensors, or torch's file of
tensors alone.

Two layouts are known: transformers' dense LLaMA, and that of the NeuroTrails paper's code (arXiv 2505.17909), whose
trunk is ``backbone_model`` and whose trails are ``head_model_<number>``.
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
from nt_dist.export.names import llama_name, paper_name
from nt_dist.model.weights import real_shape, weight_specs
from nt_dist.sparsity.spec import WeightSpec

LLAMA, PAPER = "llama", "paper"
_HEAD = re.compile(r"head_model_(\d+)\.")
_NO_WEIGHT = re.compile(r"rotary_emb\.|\.inv_freq$")


@dataclass(frozen=True)
class Foreign:
    """A foreign checkpoint.

    Attributes:
        path: Its folder.
        layout: LLAMA or PAPER.
        settings: Its config.json.
        shapes: Of every tensor, by key.
        read: Gives a tensor, by key.
        heads: The numbers of the paper's trails, in order.
    """

    path: Path
    layout: str
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    heads: tuple[int, ...]

    def key(self, config: Config, spec: WeightSpec, trail: int) -> str:
        """Return the key of what a weight's trail is taken from; every trail of ours from the same dense blocks."""
        if self.layout == PAPER:
            return paper_name(config, spec.name, self.heads[trail])
        key = llama_name(spec.name)
        tied = spec.name == "output" and key not in self.shapes and self.settings.get("tie_word_embeddings")
        return llama_name("embedding") if tied else key


def open_foreign(path: Path, key: str = "--model") -> Foreign:
    """Open a folder with config.json and *.safetensors, or, in the paper's layout, pytorch_model.bin.

    Raises:
        CheckpointError: It cannot be read, is in no known layout, or would run code.
    """
    settings = _settings(path, key)
    files = sorted(path.glob("*.safetensors"))
    pickled = path / "pytorch_model.bin"
    if files:
        shapes, read = _safetensors(files)
    elif pickled.is_file():
        shapes, read = _pickled(pickled)
    else:
        raise CheckpointError(f"{key} {path}: holds no *.safetensors and no pytorch_model.bin")
    shapes = {name: shape for name, shape in shapes.items() if not _NO_WEIGHT.search(name)}
    heads = tuple(sorted({int(found[1]) for name in shapes if (found := _HEAD.match(name))}))
    layout = PAPER if heads else LLAMA
    if layout == LLAMA and "model.embed_tokens.weight" not in shapes:
        raise CheckpointError(
            f"{key} {path}: neither a LLaMA (model.embed_tokens.weight) nor in the layout of the paper's code "
            f"(backbone_model.…, head_model_<number>.…); its first tensors: {', '.join(sorted(shapes)[:3])}"
        )
    if layout == LLAMA and not files:
        raise CheckpointError(f"{key} {path}: a dense LLaMA is read from *.safetensors only")
    return Foreign(path, layout, settings, shapes, read, heads)


def _settings(path: Path, key: str) -> dict[str, Any]:
    file = path / "config.json"
    try:
        settings = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{key} {path}: config.json cannot be read: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{key} {path}: config.json is not JSON") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{key} {path}: config.json must hold an object")
    return settings


def _safetensors(files: list[Path]) -> tuple[dict[str, tuple[int, ...]], Callable[[str], torch.Tensor]]:
    shapes, where = {}, {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dict
                    shapes[name], where[name] = tuple(opened.get_slice(name).get_shape()), file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None

    def read(name: str) -> torch.Tensor:
        with safe_open(where[name], framework="pt") as opened:
            return opened.get_tensor(name)

    return shapes, read


def _pickled(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], torch.Tensor]]:
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
    found = _settings_problems(foreign, config)
    return found or _tensor_problems(foreign, config)


def _settings_problems(foreign: Foreign, config: Config) -> list[str]:
    theirs, model, trails = foreign.settings, config.model, config.trails
    rope = theirs.get("rope_parameters") or {}
    ours = {
        "model.hidden_size": (model.hidden_size, "hidden_size", None),
        "model.ffn_size": (model.ffn_size, "intermediate_size", None),
        "model.num_layers": (model.num_layers, "num_hidden_layers", None),
        "model.num_attention_heads": (model.num_attention_heads, "num_attention_heads", None),
        "model.num_kv_heads": (config.model.key_value_heads, "num_key_value_heads", theirs.get("num_attention_heads")),
        "model.vocab_size": (model.vocab_size, "vocab_size", None),
        "model.norm_eps": (model.norm_eps, "rms_norm_eps", 1e-6),
        "model.rope_theta": (model.rope_theta, "rope_theta", rope.get("rope_theta", 10000.0)),
    }
    if foreign.layout == PAPER:
        ours["trails.count"] = (trails.count, "num_ensemble", None)
        ours["trails.layers"] = (model.num_layers - config.trunk_layers, "blocks_in_head", None)
    problems = []
    for key, (value, name, default) in ours.items():
        expected = theirs.get(name)
        expected = default if expected is None else expected
        if expected is None:
            problems.append(f"{foreign.path}/config.json: has no {name}")
        elif value != expected:
            problems.append(f"{key} = {value} must be {expected}, the {name} of the imported model")
    scaling = theirs.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    if scaling:
        problems.append(f"{foreign.path}/config.json: rope_scaling = {scaling} is not supported")
    if theirs.get("attention_bias") or theirs.get("mlp_bias"):
        problems.append(f"{foreign.path}/config.json: attention_bias and mlp_bias must be false: there are no biases")
    if foreign.layout == PAPER and not trails.final_norm_twice:
        problems.append(
            "trails.final_norm_twice = false must be true: in the paper's code each trail's final norm runs twice"
        )
    if foreign.layout == PAPER and trails.fork != "blocks":
        problems.append(f"trails.fork = {trails.fork!r} must be 'blocks' for a model in the paper's layout")
    if foreign.layout == LLAMA and trails.final_norm_twice:
        problems.append("trails.final_norm_twice = true must be false: a LLaMA's final norm runs once")
    return problems


def _tensor_problems(foreign: Foreign, config: Config) -> list[str]:
    if foreign.layout == PAPER and len(foreign.heads) != config.trails.count:
        return [f"trails.count = {config.trails.count} must be {len(foreign.heads)}, the head_model_… there are"]
    expected = {
        foreign.key(config, spec, trail): real_shape(spec)
        for spec in weight_specs(config).values()
        for trail in range(spec.trails)
    }
    problems = [f"{foreign.path}: has no tensor {name}" for name in expected if name not in foreign.shapes]
    problems += [
        f"{foreign.path}: {name} has shape {list(foreign.shapes[name])}, must have {list(shape)}"
        for name, shape in expected.items()
        if name in foreign.shapes and foreign.shapes[name] != shape
    ]
    strangers = sorted(set(foreign.shapes) - set(expected))
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        problems.append(f"{foreign.path}: has tensors of another model: {', '.join(strangers[:3])}{more}")
    return problems
