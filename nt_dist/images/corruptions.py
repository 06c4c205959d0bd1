"""The 15 common corruptions of Hendrycks and Dietterich (arXiv 1903.12261, section 3), made on the fly.

These are functions of our own after their descriptions, so their pictures are not those of ImageNet-C to the bit. What
differs on purpose: glass takes every pixel's colour from a neighbour at once in place of one exchange after another,
motion is a half Gaussian along whole pixels, and the frost is a synthetic texture, not a photograph. What becomes of
a picture is a function of kind, severity and number of the sample. x is [side, side, 3] in 0 .. 1; results are clipped.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import fftconvolve

from nt_dist.images.severities import KINDS, SMALL

_SEED = 0  # not a run's, so that all runs are measured on the same corrupted pictures
_GREY = (0.299, 0.587, 0.114)
_ICE = (0.86, 0.93, 1.0)  # the colour of frost
Draw = np.random.Generator


def corrupt(picture: np.ndarray, kind: str, severity: int, number: int) -> np.ndarray:
    """Corrupt one picture, bytes [side, side, 3]; ``number`` is the sample's."""
    severities = KINDS[kind].small if len(picture) < SMALL else KINDS[kind].large
    parameters = severities[severity - 1]
    draw = np.random.default_rng((_SEED, list(KINDS).index(kind), severity, number))
    x = picture.astype(np.float32) / 255
    found = _FUNCTIONS[kind](x, draw, *(parameters if isinstance(parameters, tuple) else (parameters,)))
    return (found.clip(0, 1) * 255).round().astype(np.uint8)


def gaussian_noise(x: np.ndarray, draw: Draw, deviation: float) -> np.ndarray:
    """Normal noise on each channel of each pixel."""
    return x + draw.normal(scale=deviation, size=x.shape)


def shot_noise(x: np.ndarray, draw: Draw, photons: float) -> np.ndarray:
    """Photons are counted, as many as this where it is brightest."""
    return draw.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, draw: Draw, share: float) -> np.ndarray:
    """So many of the values become black or white."""
    kind = draw.random(x.shape)
    return np.where(kind < share / 2, 0, np.where(kind < share, 1, x))


def defocus_blur(x: np.ndarray, draw: Draw, radius: float, softness: float) -> np.ndarray:
    """The mean over a disk whose edge is blurred a little."""
    edge = 1 if radius <= 8 else 2
    reach = math.floor(radius) + edge
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = gaussian_filter((down**2 + right**2 <= radius**2).astype(np.float32), softness, radius=edge)
    wide = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    return fftconvolve(wide, disk[..., None] / disk.sum(), "valid", axes=(0, 1))


def glass_blur(x: np.ndarray, draw: Draw, deviation: float, distance: int, times: int) -> np.ndarray:
    """Pixels take the colour of one at most so far away, between two slight blurs."""
    side = len(x)
    x = gaussian_filter(x, (deviation, deviation, 0))
    down, right = np.mgrid[:side, :side]
    for _ in range(times):
        steps = draw.integers(-distance, distance, (2, side, side), endpoint=True)
        x = x[(down + steps[0]).clip(0, side - 1), (right + steps[1]).clip(0, side - 1)]
    return gaussian_filter(x, (deviation, deviation, 0))


def motion_blur(x: np.ndarray, draw: Draw, radius: int, deviation: float) -> np.ndarray:
    """A trace in a direction of -45° .. 45°."""
    return _traced(x, radius, deviation, draw.uniform(-45, 45))


def zoom_blur(x: np.ndarray, draw: Draw, end: float, step: float) -> np.ndarray:
    """The mean while a lens zooms from 1 to before ``end``."""
    factors, picture = np.arange(1, end, step), _image(x)
    return (x + sum(np.asarray(_zoomed(picture, factor)) / 255 for factor in factors)) / (len(factors) + 1)


def snow(
    x: np.ndarray,
    draw: Draw,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    length: float,
    colour: float,
) -> np.ndarray:
    """Flakes, which are noise above a threshold, zoomed and traced, fall on a picture that is paler than it was."""
    noise = Image.fromarray(draw.normal(mean, deviation, x.shape[:2]).astype(np.float32))
    flakes = np.asarray(_zoomed(noise, zoom))
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = _traced(flakes[..., None], radius, length, draw.uniform(-135, -45))
    grey = (x @ np.array(_GREY, np.float32))[..., None]
    pale = colour * x + (1 - colour) * np.maximum(x, 1.5 * grey + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def frost(x: np.ndarray, draw: Draw, picture: float, ice: float) -> np.ndarray:
    """So much of the picture and so much of a texture with veins of ice."""
    side = len(x)
    veins = 1 - np.abs(2 * plasma(draw, side, 1.8) - 1)  # bright where a fractal passes its middle
    texture = 0.35 * plasma(draw, side, 2.5) + 0.65 * veins**3
    return picture * x + ice * texture[..., None] * np.array(_ICE, np.float32)


def fog(x: np.ndarray, draw: Draw, thickness: float, decay: float) -> np.ndarray:
    """A bright plasma in front of the picture, which is darkened to fit."""
    brightest = x.max()
    return (x + thickness * plasma(draw, len(x), decay)[..., None]) * brightest / (brightest + thickness)


def brightness(x: np.ndarray, draw: Draw, more: float) -> np.ndarray:
    """So much more of the value of hue, saturation and value."""
    value = x.max(-1, keepdims=True)
    brighter = (value + more).clip(0, 1)
    return np.where(value > 0, x * brighter / value.clip(1e-6), brighter)


def contrast(x: np.ndarray, draw: Draw, share: float) -> np.ndarray:
    """Each channel's distances from its mean, as a share of what they were."""
    mean = x.mean((0, 1), keepdims=True)
    return mean + share * (x - mean)


def elastic_transform(x: np.ndarray, draw: Draw, stretch: float, smoothness: float, tilt: float) -> np.ndarray:
    """A random affine map that moves three points by at most ``tilt``, then a smooth field of shifts."""
    side = len(x)
    centre, third = side // 2, side // 3
    corners = centre + third * np.array([(1, 1), (1, -1), (-1, -1)])
    moved = corners + draw.uniform(-tilt, tilt, corners.shape) * side
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # [3, 2]: from moved places to first ones
    shifts = draw.uniform(-1, 1, (2, side, side))
    shifts = np.stack([gaussian_filter(each, smoothness * side, truncate=3) for each in shifts]) * stretch * side
    places = np.mgrid[:side, :side] + shifts
    down, right = np.einsum("iyx,ij->jyx", np.stack([*places, np.ones((side, side))]), affine)
    return np.stack(
        [map_coordinates(each, (down, right), order=1, mode="mirror") for each in np.moveaxis(x, -1, 0)], -1
    )


def pixelate(x: np.ndarray, draw: Draw, share: float) -> np.ndarray:
    """Scaled down to a share of the side and up again, by boxes."""
    side, few = len(x), max(1, int(len(x) * share))
    box = Image.Resampling.BOX
    return np.asarray(_image(x).resize((few, few), box).resize((side, side), box), np.float32) / 255


def jpeg_compression(x: np.ndarray, draw: Draw, quality: int) -> np.ndarray:
    """Saved as a JPEG of this quality."""
    file = io.BytesIO()
    _image(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


def plasma(draw: Draw, side: int, decay: float) -> np.ndarray:
    """A fractal [side, side] in 0 .. 1, by the diamond-square algorithm on a torus (Fournier et al., CACM 25, 1982).

    ``decay`` is by how much less each finer grid is displaced.
    """
    grid, displaced = np.zeros((1, 1)), 1.0
    while len(grid) < max(2, side):
        size = len(grid)
        below, beside = np.roll(grid, -1, 0), np.roll(grid, -1, 1)
        noise = draw.uniform(-displaced, displaced, (3, size, size))
        middle = (grid + below + beside + np.roll(below, -1, 1)) / 4 + noise[0]
        finer = np.empty((2 * size, 2 * size))
        finer[::2, ::2], finer[1::2, 1::2] = grid, middle
        finer[::2, 1::2] = (grid + beside + middle + np.roll(middle, 1, 0)) / 4 + noise[1]
        finer[1::2, ::2] = (grid + below + middle + np.roll(middle, 1, 1)) / 4 + noise[2]
        grid, displaced = finer, displaced / decay
    return ((grid - grid.min()) / np.ptp(grid))[:side, :side].astype(np.float32)


def _traced(x: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """Each pixel is a mean over 2 radius + 1 along a line, with the weights of half a Gaussian."""
    side, lengths = len(x), np.arange(2 * radius + 1)
    weights = np.exp(-(lengths**2) / (2 * deviation**2))
    down, right = (np.rint(lengths * part(math.radians(angle))).astype(int) for part in (math.sin, math.cos))
    margin = int(lengths[-1])
    wide = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), "edge")
    traced = np.zeros_like(x)
    for weight, row, column in zip(weights / weights.sum(), margin + down, margin + right, strict=True):
        traced += weight.astype(x.dtype) * wide[row : row + side, column : column + side]
    return traced


def _zoomed(picture: Image.Image, factor: float) -> Image.Image:
    """The middle of a square picture, so many times larger."""
    side = picture.width
    margin = (side - side / factor) / 2
    return picture.resize((side, side), Image.Resampling.BILINEAR, (margin, margin, side - margin, side - margin))


def _image(x: np.ndarray) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    each.__name__: each
    for each in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}
