"""One picture, from its bytes to [side, side, 3] bytes of red, green and blue."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nt_dist.errors import DataError

Box = tuple[float, float, float, float]  # left, top, width and height, as shares of a picture's sides
_SHORT_SIDE = 256 / 224  # of the side that is cut out of the middle, as for ImageNet since He et al.
_SQUARE: Box | None = None


def decode(source: bytes | str | Path, side: int, box: Box | None = _SQUARE) -> np.ndarray:
    """Read one picture.

    Args:
        source: The contents of a file, or its path.
        side: Of the result, in pixels.
        box: What to cut out and scale; None: the middle square, smaller than the picture by the customary margin where
            it has to be scaled down.

    Returns:
        Bytes [side, side, 3].

    Raises:
        DataError: It cannot be read; without the name of the file.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if box is None:
                picture.draft("RGB", (side * 2, side * 2))  # of a JPEG only so many coefficients are decoded
            return np.asarray(_cut(_as_rgb(ImageOps.exif_transpose(picture)), side, box))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read as a picture: {error}") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":  # 16 bits a pixel; Pillow would cut them off at 255
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _cut(picture: Image.Image, side: int, box: Box | None) -> Image.Image:
    width, height = picture.size
    if (width, height) == (side, side) and box is None:
        return picture
    if box is None:
        square = min(width, height)
        inner = square / _SHORT_SIDE if square >= side * _SHORT_SIDE else square
        left, top = (width - inner) / 2, (height - inner) / 2
        area = (left, top, left + inner, top + inner)
    else:
        left, top = box[0] * width, box[1] * height
        area = (left, top, left + box[2] * width, top + box[3] * height)
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=area)
