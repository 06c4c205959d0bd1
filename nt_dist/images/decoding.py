"""One picture, from its bytes to [side, side, 3] bytes of red, green and blue."""

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from nt_dist.errors import DataError

_SHORT_SIDE = 256 / 224  # of the side that is cut out of the middle, as for ImageNet since He et al.
_MOST_PIXELS = 1 << 26  # what a picture of a few kilobytes may ask for when it is decoded: 256 MiB at 4 bytes each
_ORIENTATION, _FIRST_ON_ITS_SIDE = 0x0112, 5  # EXIF's tag, and the first of its values that exchange width and height


class Crop(NamedTuple):
    """A part of a picture: which share of its area, width over height, and where, 0 to 1 from left and from top."""

    area: float
    ratio: float
    right: float
    down: float


def scaled_side(side: int) -> int:
    """Return the shorter side of a large picture from whose middle ``side`` pixels are taken."""
    return round(side * _SHORT_SIDE)


def decode(source: bytes | str | np.ndarray, side: int, crop: Crop | None = None) -> np.ndarray:
    """Read one picture.

    Args:
        source: The contents of a file, its path, or a decoded picture [height, width, 3].
        side: Of the result, in pixels.
        crop: What to cut out and scale; None: the middle square, smaller than the picture by the customary margin where
            it has to be scaled down.

    Returns:
        Bytes [side, side, 3].

    Raises:
        DataError: It cannot be read; without the name of the file.
    """
    if isinstance(source, np.ndarray):
        if crop is None and source.shape == (side, side, 3):
            return source
        return np.asarray(_scaled(Image.fromarray(source), side, crop))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            # of a JPEG only so many coefficients are decoded as the result needs
            size = picture.size
            if math.prod(size) > _MOST_PIXELS:
                raise DataError(f"{size[0]} x {size[1]} pixels are more than {_MOST_PIXELS:,}")
            on_its_side = picture.getexif().get(_ORIENTATION, 1) >= _FIRST_ON_ITS_SIDE
            left, top, right, bottom = _area(size[::-1] if on_its_side else size, side, crop)
            scale = min(right - left, bottom - top) / side
            picture.draft("RGB", (int(size[0] / scale), int(size[1] / scale)))
            return np.asarray(_scaled(_as_rgb(ImageOps.exif_transpose(picture)), side, crop))
    except MemoryError:
        raise
    except Exception as error:  # of a broken file Pillow's readers raise whatever they stumble over
        raise DataError(f"cannot be read as a picture: {error or type(error).__name__}") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _scaled(picture: Image.Image, side: int, crop: Crop | None) -> Image.Image:
    area = _area(picture.size, side, crop)
    if area == (0, 0, side, side) == (0, 0, *picture.size):
        return picture
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=area)


def _area(size: tuple[int, int], side: int, crop: Crop | None) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is scaled to the side, in pixels of a picture of this width and height."""
    if crop is None:
        square = min(size)
        width = height = square / _SHORT_SIDE if square >= side * _SHORT_SIDE else square
        right = down = 0.5
    else:
        root = math.sqrt(crop.area * size[0] * size[1])
        width = min(size[0], root * math.sqrt(crop.ratio))
        height = min(size[1], root / math.sqrt(crop.ratio))
        right, down = crop.right, crop.down
    left, top = right * (size[0] - width), down * (size[1] - height)
    return left, top, left + width, top + height
