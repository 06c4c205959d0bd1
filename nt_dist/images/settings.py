"""The section ``[data]`` of families that read pictures."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nt_dist.config.keys import FRACTION, NOT_EMPTY, Rule, at_least, free, reads, schedule
from nt_dist.config.rules import ignored
from nt_dist.config.settings import Config
from nt_dist.data import settings as data

_THREE = Rule("must be three numbers", lambda value: len(value) == 3)
HIGHEST_MAGNITUDE = 10
_MAGNITUDE = Rule(f"must be in [0, {HIGHEST_MAGNITUDE}]", lambda value: 0 <= value <= HIGHEST_MAGNITUDE)
_STD = Rule("must be three numbers above 0", lambda value: len(value) == 3 and min(value) > 0)


@dataclass(frozen=True)
class Data:
    """The pictures, and what is done to them."""

    source: Literal["digits", "folder", "parquet", "hf"] = schedule(
        "digits",
        "digits (scikit-learn's handwritten digits), folder (a folder of pictures for each class), parquet (files with "
        "a picture and a label in each row) or hf (Hugging Face datasets).",
    )
    path: str | tuple[str, ...] = schedule(
        "", "A folder, parquet files (folders, patterns, a list), or a dataset's name."
    )
    subset: str = schedule("", "For hf: the configuration of the dataset.")
    image_key: str = schedule("image", "For parquet and hf: the column of the pictures.", NOT_EMPTY)
    label_key: str = schedule("label", "For parquet and hf: the column of the labels.", NOT_EMPTY)
    validation: str | float = schedule(
        0.2,
        "Path of the validation pictures (hf, folder of splits: name of a split), or a share of the pictures.",
        data.path_or_share("a path, the name of a split, or a share of the pictures"),
    )
    max_images: int = schedule(0, "Read only the first so many training pictures; 0: all.", at_least(0))
    max_bad_share: float = free(0.0, "Share of pictures that cannot be read and may be passed over.", FRACTION)
    crop: Literal["none", "pad", "resized"] = schedule(
        "pad",
        "Training crops: pad (shifted by up to data.padding pixels), resized (8 to 100 % of the area) or none.",
    )
    padding: int = schedule(4, "Pixels by which a pad crop is shifted at most, mirrored at the edges.", at_least(0))
    flip: bool = schedule(True, "Mirror half of the training pictures.")
    randaugment: int = schedule(0, "RandAugment's operations on a training picture; 0: none.", at_least(0))
    randaugment_magnitude: float = schedule(9.0, "How strong they are.", _MAGNITUDE)
    mixup: float = schedule(
        0.0, "Alpha of the Beta distribution by which two training pictures are mixed; 0: none.", at_least(0)
    )
    cutmix: float = schedule(
        0.0, "The same where a part of one is put into the other; with mixup, half of the pictures each.", at_least(0)
    )
    mean: tuple[float, ...] = schedule((0.485, 0.456, 0.406), "Mean of red, green and blue, in [0, 1].", _THREE)
    std: tuple[float, ...] = schedule((0.229, 0.224, 0.225), "Their standard deviations.", _STD)
    benchmark: Literal["none", "cifar10", "cifar100", "imagenet"] = free(
        "none", "Public data set that these pictures are, all of it; compare prints its published figures."
    )
    num_workers: int = free(2, "Threads that decode and load.", at_least(0))


@reads("data.source", "model.image_size", "data.padding", "data.crop")
def _padding_fits(config: Config) -> Iterator[str]:
    if config.data.crop == "pad" and config.data.padding >= config.model.image_size:
        yield f"data.padding = {config.data.padding} must be less than model.image_size = {config.model.image_size}"


RULES = (data.source_has_a_path, _padding_fits)


_SPLITS = {"train", "val", "valid", "validation", "test"}


def with_split_folders(data: Data) -> Data:
    """Return ``data`` with the splits' own paths, where ``data.path`` is a folder that holds "train" and others.

    A folder "train" beside one that is no split is a class.
    """
    root = Path(os.path.expanduser(data.path)) if data.source == "folder" and isinstance(data.path, str) else None
    if root is None or not (root / "train").is_dir():
        return data
    names = {each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")}
    if len(names) == 1 or not names <= _SPLITS:
        return data
    of_root = data.validation in names
    return replace(
        data, path=str(root / "train"), validation=str(root / data.validation) if of_root else data.validation
    )


def paths(config: Config) -> list[tuple[str, str]]:
    """See :meth:`Family.paths`."""
    return data.paths(replace(config, data=with_split_folders(config.data)))


def ignored_settings(config: Config) -> Iterator[str]:
    source, crop = config.data.source, config.data.crop
    yield from data.ignored_settings(config)
    if source in ("digits", "folder"):
        yield from ignored(config, f"data.source = {source!r}", "data.image_key", "data.label_key")
    if crop != "pad":
        yield from ignored(config, f"data.crop = {crop!r}", "data.padding")
    if config.data.randaugment == 0:
        yield from ignored(config, "data.randaugment = 0", "data.randaugment_magnitude")
