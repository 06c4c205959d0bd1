"""Checkpoints of other programs, as far as they can be read without running anything: safetensors, or torch's file of
tensors alone."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from nt_dist.config.family import Family
from nt_dist.errors import CheckpointError
from nt_dist.model.foreign import Foreign

_NO_WEIGHT = re.compile(r"rotary_emb\.|\.inv_freq$|\.num_batches_tracked$")
Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], torch.Tensor]


def open_foreign(path: Path, family: Family) -> Foreign:
    """Open a folder with config.json and *.safetensors, or, where the layout may be so, pytorch_model.bin.

    Raises:
        CheckpointError: It cannot be read, is in no layout that the family knows, or would run code.
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
    layouts = family.foreign()
    layout = next((each for each in layouts if each.fits(shapes)), None)
    if layout is None:
        known = " nor ".join(each.sign for each in layouts)
        known = f"neither {known}" if len(layouts) > 1 else f"not {known}"
        raise CheckpointError(f"--model {path}: {known}; its first tensors: {', '.join(sorted(shapes)[:3])}")
    if not files and not layout.may_be_pickled:
        raise CheckpointError(f"--model {path}: {layout.title} is read from *.safetensors only")
    return layout(path, settings, shapes, read)


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
