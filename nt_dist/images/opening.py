"""A run's pictures, opened and checked."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nt_dist.config.settings import Config
from nt_dist.data.order import samples_at
from nt_dist.errors import DataError
from nt_dist.images.samples import PictureSamples
from nt_dist.images.sources import Pictures, open_pictures

_IN_MEMORY = 1 << 31  # bytes of decoded pictures that a process keeps, at most
_logger = logging.getLogger(__name__)


class OpenPictures(NamedTuple):
    """A run's data; see :meth:`nt_dist.config.family.Family.open_data`."""

    train: PictureSamples
    validation: PictureSamples
    digest: str
    classes: list[str]

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint keeps: the names of the classes."""
        return {"classes": self.classes}


def open_data(config: Config, is_writer: bool, exchange: Callable[[Callable[[], Any]], Any]) -> OpenPictures:
    """Open a config's pictures: one rank lets ``datasets`` index them first.

    Raises:
        DataError: They cannot be read, more of them than ``data.max_bad_share`` are broken, a label is out of range, or
            a class has no picture.
    """
    exchange(lambda: len(_open(config)))
    train, validation = _open(config)
    for pictures in (train, validation):
        _check_labels(pictures, config.model.num_classes)
    lacking = np.setdiff1d(np.arange(config.model.num_classes), train.labels)
    if len(lacking):
        names = ", ".join(train.classes[each] if len(train.classes) > each else str(each) for each in lacking[:5])
        raise DataError(f"{train.name}: {len(lacking)} of {config.model.num_classes} classes have no picture: {names}")
    digest = train.digest
    if is_writer:
        for name, pictures in (("training", train), ("validation", validation)):
            _logger.info("%s: %s pictures of %d classes", name, f"{len(pictures):,}", config.model.num_classes)
    train, validation = (_readable(config, pictures) for pictures in (train, validation))
    return OpenPictures(_samples(config, train), _samples(config, validation), digest, list(train.classes))


def open_other(config: Config, path: str, exchange: Callable[[Callable[[], Any]], Any]) -> PictureSamples:
    """Open other pictures, a folder or parquet files, for an evaluation.

    Raises:
        DataError: As :func:`open_data`.
    """
    source = "folder" if Path(path).expanduser().is_dir() and not any(Path(path).glob("*.parquet")) else "parquet"
    other = replace(config, data=replace(config.data, source=source))
    exchange(lambda: len(_split(other, path, "train")))
    pictures = _split(other, path, "train")
    _check_labels(pictures, config.model.num_classes)
    return _samples(config, _readable(config, pictures))


def _split(config: Config, path: Any, split: str) -> Pictures:
    return open_pictures(config.data, path, split, Path(config.run.dir) / "data", config.model.image_size)


def _open(config: Config) -> tuple[Pictures, Pictures]:
    """Training and validation pictures."""
    data = config.data
    train = _split(config, data.path, "train")
    if isinstance(data.validation, str):
        path, split = (data.path, data.validation) if data.source == "hf" else (data.validation, "train")
        validation = _split(config, path, split)
        if data.max_images:
            train = train.some(np.arange(min(data.max_images, len(train))))
        unknown = sorted(set(validation.classes) - set(train.classes)) if len(train.classes) else []
        if unknown:
            raise DataError(f"data.validation = {data.validation!r}: training has no class {unknown[0]!r}")
        return train, validation
    if data.max_images:
        train = train.some(np.arange(min(data.max_images, len(train))))
    order = samples_at(0, len(train), np.arange(len(train)))
    count = max(1, round(len(train) * data.validation))
    if count >= len(train):
        raise DataError(f"data.validation = {data.validation}: leaves none of {len(train)} pictures to train on")
    return train.some(np.sort(order[count:])), train.some(np.sort(order[:count]))


def _check_labels(pictures: Pictures, num_classes: int) -> None:
    wrong = (pictures.labels < 0) | (pictures.labels >= num_classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise DataError(
            f"{pictures.name}: picture {index} has label {pictures.labels[index]}, which must be from 0 to "
            f"model.num_classes - 1 = {num_classes - 1}; {int(wrong.sum())} are out of range"
        )


def _samples(config: Config, pictures: Pictures) -> PictureSamples:
    return PictureSamples(pictures, config.data, config.model.image_size, config.train.seed)


def _readable(config: Config, pictures: Pictures) -> Pictures:
    """Decoded once where all fit into memory and no part of them is cut out at full size; broken ones left out."""
    side, data = config.model.image_size, config.data
    if isinstance(pictures.raw, np.ndarray) or data.crop == "resized" or len(pictures) * side * side * 3 > _IN_MEMORY:
        return pictures
    decoded, broken = np.empty((len(pictures), side, side, 3), np.uint8), []
    good = []
    for index, picture in enumerate(_decoded(pictures, side, broken)):
        if picture is not None:
            decoded[len(good)] = picture
            good.append(index)
    if len(broken) > data.max_bad_share * len(pictures):
        share = f"data.max_bad_share = {data.max_bad_share}"
        raise DataError(f"{broken[0]}; {len(broken)} of {len(pictures)} pictures cannot be read, {share}")
    if broken:
        _logger.warning("%d of %d pictures are passed over; the first: %s", len(broken), len(pictures), broken[0])
    return Pictures(pictures.name, pictures.labels[good], pictures.classes, decoded[: len(good)])


def _decoded(pictures: Pictures, side: int, broken: list[str]) -> Iterator[np.ndarray | None]:
    for index in range(len(pictures)):
        try:
            yield pictures.read(index, side)
        except DataError as error:
            broken.append(str(error))
            yield None
