"""A run's pictures, opened and checked."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nt_dist.config.settings import Config
from nt_dist.data.order import samples_at
from nt_dist.data.samples import Exchange, OpenData
from nt_dist.errors import DataError
from nt_dist.images.robustness import open_corrupted
from nt_dist.images.samples import Broken, PictureSamples
from nt_dist.images.settings import with_split_folders
from nt_dist.images.sources import PARQUET, Pictures, open_pictures
from nt_dist.messages import ProgressBar

_IN_MEMORY = 1 << 31  # bytes of decoded pictures that a process keeps, at most
_AT_ONCE = 256  # pictures between two looks at the progress bar
_WORTH_A_BAR = 4096
_logger = logging.getLogger(__name__)


def open_data(config: Config, is_writer: bool, exchange: Exchange) -> OpenData:
    """Open a config's pictures: one rank lets ``datasets`` index them first.

    Raises:
        DataError: They cannot be read, more of them than ``data.max_bad_share`` are broken, a label is out of range, a
            class has no picture, or validation has a class that training lacks.
    """
    exchange(lambda: len(_open(config)))
    train, validation = _open(config)
    lacking = np.setdiff1d(np.arange(config.model.num_classes), train.labels)
    if len(lacking):
        names = ", ".join(train.classes[each] if len(train.classes) > each else str(each) for each in lacking[:5])
        raise DataError(
            f"{train.name}: {len(lacking)} of model.num_classes = {config.model.num_classes} classes have no picture "
            f"to train on: {names}{', …' if len(lacking) > 5 else ''}"
        )
    if is_writer:
        for name, pictures in (("training", train), ("validation", validation)):
            _logger.info("%s: %s pictures of %d classes", name, f"{len(pictures):,}", config.model.num_classes)
    digest = train.digest(whole=_fits(config, train))
    samples = [_samples(config, pictures, is_writer) for pictures in (train, validation)]
    return OpenData(*samples, digest, {"classes": list(train.classes)})


def open_other(config: Config, path: str, exchange: Exchange, classes: Sequence[str]) -> OpenData:
    """Open other pictures, a folder, parquet files or what robustness.py reads, for an evaluation.

    Their labels are told by the names of the model's ``classes``, where both have names. Where that cannot be, as with
    pictures of other things, their labels are 0 and :attr:`OpenData.foreign` says why.

    Raises:
        DataError: They cannot be read.
    """
    place = Path(os.path.expanduser(path))
    has_tables = (place.is_dir() and any(place.glob(f"*{PARQUET}"))) or not place.is_dir()
    other = replace(config, data=replace(config.data, source="parquet" if has_tables else "folder"))

    def read() -> Pictures:
        return open_corrupted(f"data = {path!r}", place) or _split(other, path, "train", "data")

    exchange(lambda: len(read()))
    pictures, foreign = read(), ""
    named = set(pictures.classes)
    try:
        _check_labels(pictures, max(len(pictures.classes), config.model.num_classes))
        pictures = pictures.labelled_as(classes)
        _check_labels(pictures, config.model.num_classes)
    except DataError as error:
        pictures, foreign = replace(pictures, labels=np.zeros_like(pictures.labels)), str(error)
    among = [number for number, each in enumerate(classes) if each in named]
    is_part = not foreign and 0 < len(among) < config.model.num_classes
    return OpenData(None, _samples(config, pictures, False), None, {}, foreign, among=among if is_part else ())


def _split(config: Config, path: Any, split: str, key: str) -> Pictures:
    folder = Path(config.run.dir) / "data"
    return open_pictures(config.data, path, split, folder, key, config.model.image_size)


def _open(config: Config) -> tuple[Pictures, Pictures]:
    """Training and validation pictures with their labels checked."""
    config = replace(config, data=with_split_folders(config.data))
    data, num_classes = config.data, config.model.num_classes
    train = _split(config, data.path, "train", "data.path")
    if data.max_images:
        train = train.some(np.arange(min(data.max_images, len(train))))
    _check_labels(train, num_classes)
    if isinstance(data.validation, str):
        path, split = (data.path, data.validation) if data.source == "hf" else (data.validation, "train")
        validation = _split(config, path, split, "data.validation")
        _check_labels(validation, max(len(validation.classes), num_classes))
        return train, validation.labelled_as(train.classes)
    order = samples_at(0, len(train), np.arange(len(train)))
    count = max(1, round(len(train) * data.validation))
    if count >= len(train):
        raise DataError(f"data.validation = {data.validation}: leaves none of {len(train)} pictures to train on")
    return train.some(np.sort(order[count:])), train.some(np.sort(order[:count]))


def _check_labels(pictures: Pictures, num_classes: int) -> None:
    if len(pictures.classes) > num_classes:
        raise DataError(f"{pictures.name}: has {len(pictures.classes)} classes, model.num_classes = {num_classes}")
    wrong = (pictures.labels < 0) | (pictures.labels >= num_classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(
            f"{pictures.name}: picture {index} has label {pictures.labels[index]}, which must be from 0 to "
            f"model.num_classes - 1 = {num_classes - 1}; {int(wrong.sum())} are out of range"
        )


def _fits(config: Config, pictures: Pictures) -> bool:
    """Whether all are kept decoded: they fit into memory, and no part of them is cut out at full size."""
    return config.data.crop != "resized" and len(pictures) * config.model.image_size**2 * 3 <= _IN_MEMORY


def _samples(config: Config, pictures: Pictures, shows_progress: bool) -> PictureSamples:
    """Pictures as samples: decoded once where that fits, broken ones left out."""
    data, side = config.data, config.model.image_size
    broken = Broken(data.max_bad_share, len(pictures))
    if _fits(config, pictures) and not isinstance(pictures.raw, np.ndarray):
        pictures = _decoded(pictures, side, broken, data.num_workers, shows_progress)
    return PictureSamples(pictures, data, side, config.train.seed, broken)


def _decoded(pictures: Pictures, side: int, broken: Broken, num_workers: int, shows_progress: bool) -> Pictures:
    def read(index: int) -> np.ndarray | None:
        try:
            return pictures.read(index, side)
        except DataError as error:
            broken.add(index, error)
            return None

    count, good = len(pictures), []
    found = np.empty((count, side, side, 3), np.uint8)
    shows_bar = shows_progress and count >= _WORTH_A_BAR
    with (
        ThreadPoolExecutor(max(1, num_workers)) as pool,
        ProgressBar(count, title="decoding pictures") if shows_bar else nullcontext() as bar,
    ):
        for first in range(0, count, _AT_ONCE):
            indices = range(first, min(first + _AT_ONCE, count))
            for index, picture in zip(indices, pool.map(read, indices), strict=True):
                if picture is not None:
                    found[len(good)] = picture
                    good.append(index)
            if bar:
                bar.update(indices.stop)
    if len(good) < count:
        _logger.warning("%s: %d of %d pictures are passed over", pictures.name, count - len(good), count)
    return replace(pictures, labels=pictures.labels[good], raw=found[: len(good)])
