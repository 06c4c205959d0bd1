"""Where pictures come from: ``data.source``. Each gives labelled pictures by number, in a fixed order.

Parquet files and the hub are read by the library ``datasets``, which indexes them once, in a folder of the run that is
never half-written. A picture's bytes are read when it is asked for.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nt_dist.errors import DataError
from nt_dist.files import entries, expand, files_under
from nt_dist.images.decoding import Crop, decode
from nt_dist.images.settings import Data

PARQUET = ".parquet"
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""How the names of picture files end."""
_LOOKED_AT = 1024  # pictures whose contents are part of a digest where there are too many to read them all


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures by number.

    Attributes:
        name: For messages.
        labels: int64 [N].
        classes: Their names; empty where they have none.
        raw: Of each picture the contents or the path of its file, or itself, bytes [height, width, 3].
        turns: Sets of equally many pictures that take turns.
    """

    name: str
    labels: np.ndarray
    classes: Sequence[str]
    raw: Sequence[bytes | str | np.ndarray]
    turns: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, side: int, crop: Crop | None = None) -> np.ndarray:
        """One picture, bytes [side, side, 3]; see :func:`nt_dist.images.decoding.decode`.

        Raises:
            DataError: It cannot be read.
        """
        source = self.raw[index]
        try:
            return decode(source, side, crop)
        except DataError as error:
            where = f" ({source})" if isinstance(source, str) else ""
            raise DataError(f"{self.name}: picture {index}{where} {error}") from error

    def some(self, indices: np.ndarray) -> "Pictures":
        """Those with these numbers."""
        return replace(self, labels=self.labels[indices], raw=_Some(self.raw, indices))

    def labelled_as(self, classes: Sequence[str]) -> "Pictures":
        """The same with the labels that classes of these names have; as it is where either has no names.

        Raises:
            DataError: There is a class that is none of those.
        """
        if not (self.classes and classes) or list(self.classes) == list(classes):
            return self
        numbers = {name: number for number, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in numbers]
        if unknown:
            raise DataError(
                f"{self.name}: has the class {unknown[0]!r}, which training does not have ({len(unknown)} such)"
            )
        table = np.array([numbers[name] for name in self.classes])
        return replace(self, labels=table[self.labels], classes=classes)

    def digest(self, whole: bool) -> str:
        """Of labels and pictures; not ``whole``: of the names of all files, and the contents of some pictures.

        Raises:
            DataError: A file cannot be read.
        """
        found = hashlib.blake2b(self.labels.tobytes(), digest_size=16)
        if isinstance(self.raw[0], str):
            found.update("\0".join("/".join(Path(path).parts[-2:]) for path in self.raw).encode())
        count = len(self) if whole else min(len(self), _LOOKED_AT)
        for index in np.linspace(0, len(self) - 1, count).astype(int).tolist():
            raw = self.raw[index]
            try:
                raw = Path(raw).read_bytes() if isinstance(raw, str) else bytes(raw)
            except OSError as error:
                raise DataError(f"{self.name}: picture {index} ({raw}) cannot be read: {error.strerror}") from error
            found.update(len(raw).to_bytes(8, "little") + raw)
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


@dataclass(frozen=True)
class _Column(Sequence):
    """A column of pictures as ``datasets`` stores them: contents or path, by row."""

    cells: Any

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> bytes | str:
        cell = self.cells[index]
        if not cell.is_valid:
            return b""
        return cell["bytes"].as_py() or cell["path"].as_py() or b""


def open_pictures(data: Data, path: str | tuple[str, ...], split: str, folder: Path, key: str, side: int) -> Pictures:
    """Open pictures.

    Args:
        data: The settings.
        path: Where they are, as ``data.path`` says it.
        split: For hf.
        folder: Where ``datasets`` may keep its index.
        key: What named the path, for messages.
        side: To which digits are scaled.

    Raises:
        DataError: There are none, or they cannot be read.
    """
    if data.source == "digits":
        return _digits(side)
    name = f"{key} = {path!r}" if data.source != "hf" else f"data.path = {path!r}, split {split!r}"
    found = open_folder(name, str(path)) if data.source == "folder" else _table(name, data, path, split, folder, key)
    if not len(found):
        raise DataError(f"{name}: holds no picture")
    return found


def open_folder(name: str, path: str) -> Pictures:
    """A folder for each class, in the order of their names, with pictures at any depth.

    Not read by ``datasets``, which leaves out classes without a picture and takes names like "test" for splits.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise DataError(f"{name}: must be a folder that holds a folder of pictures for each class")
    folders = [Path(each.path) for each in entries(root) if each.is_dir()]
    if not folders:
        raise DataError(f"{name}: holds no folder; it must hold a folder of pictures for each class")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        files = [str(each) for each in files_under(folder) if each.suffix.lower() in PICTURES]
        paths += files
        labels += [label] * len(files)
    return Pictures(name, np.array(labels, np.int64), [each.name for each in folders], paths)


def _table(name: str, data: Data, path: str | tuple[str, ...], split: str, folder: Path, key: str) -> Pictures:
    """A table with a column of pictures and one of labels."""
    import datasets

    datasets.disable_progress_bars()
    options: dict[str, Any] = {"split": split, "cache_dir": str(folder)}
    if data.source == "parquet":
        files = list(map(str, expand(key, path, [PARQUET])))
        found = _tried(name, lambda: datasets.load_dataset("parquet", data_files=files, **options))
    else:
        found = _tried(name, lambda: datasets.load_dataset(str(path), data.subset or None, **options))
    for setting, key in (("data.image_key", data.image_key), ("data.label_key", data.label_key)):
        if key not in found.column_names:
            raise DataError(f"{name}: has no column {setting} = {key!r}; it has {', '.join(found.column_names)}")
    feature = found.features[data.label_key]
    labels = found.data.column(data.label_key)
    if not np.issubdtype(labels.type.to_pandas_dtype(), np.integer):
        raise DataError(f"{name}: data.label_key = {data.label_key!r} must hold whole numbers, not {feature.dtype}")
    if labels.null_count:
        raise DataError(f"{name}: data.label_key = {data.label_key!r} has no label in {labels.null_count} rows")
    as_files = datasets.Image(decode=False)
    try:
        found = found.select_columns([data.image_key]).cast_column(data.image_key, as_files)
    except Exception as error:
        dtype = found.data.column(data.image_key).type
        raise DataError(f"{name}: data.image_key = {data.image_key!r} must hold pictures, not {dtype}") from error
    names = getattr(feature, "names", ())
    return Pictures(name, labels.to_numpy().astype(np.int64), names, _Column(found.data.column(data.image_key)))


def _tried(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # datasets has no class of its own for what may go wrong
        raise DataError(f"{name}: cannot be read: {str(error).splitlines()[0]}") from error


def _digits(side: int) -> Pictures:
    """The 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn, scaled to ``side``."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = (found.images * (255 / 16)).round().astype(np.uint8)
    scaled = [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in grey]
    raw = np.repeat(np.stack(scaled)[..., None], 3, axis=-1)
    return Pictures("digits", found.target.astype(np.int64), [str(digit) for digit in range(10)], raw)
