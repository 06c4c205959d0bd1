"""Where pictures come from: ``data.source``. Each gives labelled pictures by number, in a fixed order.

Folders, parquet files and the hub are read by the library ``datasets``, which indexes them once, in a folder of the run
that is never half-written; a picture's bytes are read when it is asked for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nt_dist.errors import DataError
from nt_dist.images.decoding import Box, decode
from nt_dist.images.settings import Data

SUFFIX = ".parquet"


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures by number.

    Attributes:
        name: For messages.
        labels: int64 [N].
        classes: Their names; empty where they have none.
        raw: Contents or path of each picture, or the pictures themselves, bytes [side, side, 3].
    """

    name: str
    labels: np.ndarray
    classes: Sequence[str]
    raw: Sequence[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, side: int, box: Box | None = None) -> np.ndarray:
        """One picture, bytes [side, side, 3]; see :func:`nt_dist.images.decoding.decode`.

        Raises:
            DataError: It cannot be read.
        """
        found = self.raw[index]
        if isinstance(found, np.ndarray):
            return found
        found = found["bytes"] or found["path"]
        try:
            return decode(found, side, box)
        except DataError as error:
            where = f" ({found})" if isinstance(found, str) else ""
            raise DataError(f"{self.name}: picture {index}{where} {error}") from error

    def some(self, indices: np.ndarray) -> "Pictures":
        """Those with these numbers."""
        return Pictures(self.name, self.labels[indices], self.classes, _Some(self.raw, indices))

    @property
    def digest(self) -> str:
        """Of the labels, and of what tells the pictures apart without decoding them all."""
        found = hashlib.blake2b(self.labels.tobytes(), digest_size=16)
        for index in np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int):
            raw = self.raw[int(index)]
            if not isinstance(raw, np.ndarray):
                raw = raw["bytes"] or Path(raw["path"]).name.encode()
            found.update(bytes(raw))
        return found.hexdigest()


@dataclass(frozen=True)
class _Some(Sequence):
    """Items of a sequence, by their numbers in it."""

    items: Sequence[Any]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.items[int(self.indices[index])]


def open_pictures(data: Data, path: str | tuple[str, ...], split: str, folder: Path, side: int) -> Pictures:
    """Open pictures.

    Args:
        data: The settings.
        path: Where they are, as ``data.path`` says it.
        split: For hf.
        folder: Where ``datasets`` may keep its index.
        side: Of pictures that come decoded.

    Raises:
        DataError: There are none, or they cannot be read.
    """
    if data.source == "digits":
        return _digits(side)
    import datasets

    datasets.disable_progress_bars()
    options: dict[str, Any] = {"split": split, "cache_dir": str(folder)}
    name = f"data.path = {path!r}"
    try:
        if data.source == "folder":
            root = Path(str(path)).expanduser()
            if not root.is_dir() or not any(each.is_dir() for each in root.iterdir()):
                raise DataError(f"{name}: must be a folder that holds a folder of pictures for each class")
            found = datasets.load_dataset("imagefolder", data_dir=str(root.resolve()), drop_labels=False, **options)
        elif data.source == "parquet":
            found = datasets.load_dataset("parquet", data_files=_files(name, path), **options)
        else:
            found = datasets.load_dataset(str(path), data.subset or None, **options)
    except DataError:
        raise
    except Exception as error:  # datasets has no class of its own for what may go wrong
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error
    keys = ("image", "label") if data.source == "folder" else (data.image_key, data.label_key)
    for key, setting in zip(keys, ("data.image_key", "data.label_key"), strict=True):
        if key not in found.column_names:
            raise DataError(f"{name}: has no column {setting} = {key!r}; it has {', '.join(found.column_names)}")
    image, label = keys
    feature = found.features[label]
    found = found.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    labels = np.asarray(found.with_format("numpy")[label][:])
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name}: data.label_key = {label!r} must hold whole numbers, not {feature.dtype}")
    return Pictures(name, labels.astype(np.int64), getattr(feature, "names", ()), _Column(found, image))


@dataclass(frozen=True)
class _Column(Sequence):
    """One column of a table, by row."""

    table: Any
    key: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Any:
        return self.table[int(index)][self.key]


def _files(name: str, path: str | tuple[str, ...]) -> list[str]:
    """Parquet files, each once; patterns are for datasets to match."""
    files: list[str] = []
    for each in [path] if isinstance(path, str) else path:
        place = Path(each).expanduser()
        found = sorted(map(str, place.rglob(f"*{SUFFIX}"))) if place.is_dir() else [str(place)]
        if not found:
            raise DataError(f"{name}: the folder {each!r} holds no file ending in {SUFFIX}")
        files += found
    return list(dict.fromkeys(files))


def _digits(side: int) -> Pictures:
    """The 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn, scaled to ``side``."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = (found.images * (255 / 16)).round().astype(np.uint8)
    scaled = [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in grey]
    raw = np.repeat(np.stack(scaled)[..., None], 3, axis=-1)
    return Pictures("digits", found.target.astype(np.int64), [str(digit) for digit in range(10)], raw)
