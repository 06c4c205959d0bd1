"""What is done to training pictures beside crops and flips: RandAugment, mixup and CutMix.

Nothing is drawn here: the callers give the random numbers, in [0, 1).
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from scipy.special import betaincinv

from nt_dist.images.settings import HIGHEST_MAGNITUDE

_GREY = (128, 128, 128)  # what a picture has outside of its edges
Operation = Callable[[Image.Image, float], Image.Image]


def _affine(rows: Callable[[float, int], tuple[float, ...]]) -> Operation:
    """Move the pixels: what stands at (x, y) was at (ax + by + c, dx + ey + f); ``rows`` gives a … f."""

    def moved(picture: Image.Image, strength: float) -> Image.Image:
        matrix, how = rows(strength, picture.width), Image.Resampling.BILINEAR
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, how, fillcolor=_GREY)

    return moved


def _enhanced(kind: type) -> Operation:
    """Less or more of what Pillow calls this: 0.1 to 1.9 of what there is."""
    return lambda picture, strength: kind(picture).enhance(1 + 0.9 * strength)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, strength: picture,
    "autocontrast": lambda picture, strength: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength: ImageOps.equalize(picture),
    "rotate": lambda picture, strength: picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY),
    "solarize": lambda picture, strength: ImageOps.solarize(picture, round(256 * (1 - abs(strength)))),
    "color": _enhanced(ImageEnhance.Color),
    "posterize": lambda picture, strength: ImageOps.posterize(picture, 8 - round(4 * abs(strength))),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda strength, side: (1, 0.3 * strength, 0, 0, 1, 0)),
    "shear_y": _affine(lambda strength, side: (1, 0, 0, 0.3 * strength, 1, 0)),
    "translate_x": _affine(lambda strength, side: (1, 0, 0.45 * strength * side, 0, 1, 0)),
    "translate_y": _affine(lambda strength, side: (1, 0, 0, 0, 1, 0.45 * strength * side)),
}
"""RandAugment's, with AutoAugment's ranges (Cubuk et al., arXiv 1805.09501, table 6); a strength is in -1 … 1."""


def randaugment(picture: np.ndarray, magnitude: float, draws: Iterable[np.ndarray]) -> np.ndarray:
    """Change a picture, bytes [side, side, 3], by one operation for each of the draws (Cubuk et al., arXiv 1909.13719).

    Of a draw the first number chooses the operation, all being as likely, and the
    second its direction.
    """
    image, kinds = Image.fromarray(picture), list(OPERATIONS.values())
    for kind, direction, *_ in draws:
        strength = magnitude / HIGHEST_MAGNITUDE * (-1 if direction < 0.5 else 1)
        image = kinds[int(kind * len(kinds))](image, strength)
    return np.asarray(image)


def drawn_share(alpha: float, draw: float) -> float:
    """The first picture's share of a mixed one: Beta(alpha, alpha), by the inverse of its distribution function."""
    return float(betaincinv(alpha, alpha, draw))


def mixup(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The mean of two pictures, of which the first has this weight (Zhang et al., arXiv 1710.09412)."""
    return np.rint(share * first + (1 - share) * second).astype(np.uint8)


def cutmix(first: np.ndarray, second: np.ndarray, share: float, draws: np.ndarray) -> tuple[np.ndarray, float]:
    """Put a square part of the second picture into the first (Yun et al., arXiv 1905.04899).

    It has 1 - share of the area, and its middle is anywhere: what lies outside is cut off. Returns also the share that
    the first one keeps.
    """
    side = len(first)
    size = round(side * math.sqrt(1 - share))
    start = (draws * side).astype(int) - size // 2
    (top, left), (bottom, right) = start.clip(0, side), (start + size).clip(0, side)
    found = first.copy()
    found[top:bottom, left:right] = second[top:bottom, left:right]
    return found, 1 - (bottom - top) * (right - left) / side**2
