"""Corrupted pictures as they are published (Hendrycks, Dietterich, arXiv 1903.12261): CIFAR-10-C and ImageNet-C.

CIFAR-10-C is arrays: KIND.npy, bytes [5 N, side, side, 3] with one severity after the other, and their labels.npy.
ImageNet-C is files: KIND/SEVERITY/CLASS/*.JPEG. A kind may be asked for alone; a severity of ImageNet-C is a folder of
classes like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nt_dist.errors import DataError
from nt_dist.images.severities import CORRUPTIONS, KINDS
from nt_dist.images.sources import Pictures, open_folder

_ALL = (*KINDS, "gaussian_blur", "saturate", "spatter", "speckle_noise")  # these four are published beside the 15
_LEVELS = CORRUPTIONS.levels
_LABELS = "labels.npy"


def open_corrupted(name: str, place: Path) -> Pictures | None:
    """The pictures at a place, called ``name`` in messages; None where they are not of one of these forms.

    Kinds and severities take turns, so that the first few pictures are of all of them.

    Raises:
        DataError: They cannot be used.
    """
    if place.suffix == ".npy" or (place / _LABELS).is_file():
        files = [place] if place.suffix == ".npy" else [place / f"{kind}.npy" for kind in _ALL]
        parts = [part for file in files if file == place or file.is_file() for part in _severities(name, file)]
    else:
        kinds = [place] if place.name in _ALL else [place / kind for kind in _ALL]
        folders = [kind / str(level) for kind in kinds for level in _LEVELS]
        parts = [open_folder(name, str(folder)) for folder in folders if folder.is_dir()]
        if not parts:
            return None
    if not sum(map(len, parts)):
        raise DataError(f"{name}: holds no picture")
    classes = parts[0].classes
    if any(part.classes != classes for part in parts):
        raise DataError(f"{name}: every severity of every corruption must have the same classes")
    places = np.concatenate([np.arange(len(part)) for part in parts])
    of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.lexsort((of, places))
    turns = _Turns([part.raw for part in parts], np.stack([of, places], 1)[order])
    labels = np.concatenate([part.labels for part in parts])[order]
    return Pictures(name, labels, classes, turns, len(parts) if len({*map(len, parts)}) == 1 else 1)


def _severities(name: str, file: Path) -> list[Pictures]:
    """The pictures of an array, by severity."""
    pictures, labels = (_array(name, each) for each in (file, file.with_name(_LABELS)))
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) % len(_LEVELS):
        raise DataError(f"{name}: {file} must hold bytes [5 N, side, side, 3], not {pictures.dtype} {pictures.shape}")
    if labels.shape != pictures.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        rule = f"must hold {len(pictures):,} whole numbers, one for each picture of {file.name}"
        raise DataError(f"{name}: {_LABELS} {rule}, not {labels.dtype} {labels.shape}")
    parts = (np.split(each, len(_LEVELS)) for each in (pictures, labels.astype(np.int64)))
    return [Pictures(name, of, (), some) for some, of in zip(*parts, strict=True)]


def _array(name: str, file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{name}: {file} cannot be read as an array: {error}") from error


@dataclass(frozen=True)
class _Turns(Sequence):
    """Items of several sequences, in the order ``of`` their numbers and the items' numbers in them. [N, 2]"""

    parts: Sequence[Sequence[Any]]
    of: np.ndarray

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Any:
        part, place = self.of[index].tolist()
        return self.parts[part][place]
