"""The 15 common corruptions of Hendrycks and Dietterich (arXiv 1903.12261) and how strong each of them is.

The numbers are those of their ImageNet-C (224 pixels) and CIFAR-10-C (32 pixels), severities 1 to 5; the function
of that name in corruptions.py says what each number is. Lengths are in pixels, elastic_transform's shares of the side.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nt_dist.config.family import Corruptions
from nt_dist.config.keys import Rule

SMALL = 96
"""Pictures with fewer pixels a side take the numbers of CIFAR-10-C."""


class Severities(NamedTuple):
    """The parameters of one corruption at severities 1 to 5."""

    small: Sequence[Any]
    large: Sequence[Any]


_ZOOM_SMALL = [(1 + share, 0.01) for share in (0.06, 0.11, 0.16, 0.21, 0.26)]
_ZOOM_LARGE = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)]
_SNOW_SMALL = [
    (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
]
_SNOW_LARGE = [
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
]
_ELASTIC_SMALL = [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)]
_ELASTIC_LARGE = [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]
_DEFOCUS_SMALL = [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)]
_DEFOCUS_LARGE = [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)]
_GLASS_SMALL = [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]
_GLASS_LARGE = [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)]

KINDS = {
    "gaussian_noise": Severities((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Severities((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Severities((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Severities(_DEFOCUS_SMALL, _DEFOCUS_LARGE),
    "glass_blur": Severities(_GLASS_SMALL, _GLASS_LARGE),
    "motion_blur": Severities(
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)], [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]
    ),
    "zoom_blur": Severities(_ZOOM_SMALL, _ZOOM_LARGE),
    "snow": Severities(_SNOW_SMALL, _SNOW_LARGE),
    "frost": Severities(
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    ),
    "fog": Severities(
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)], [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)]
    ),
    "brightness": Severities((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Severities((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Severities(_ELASTIC_SMALL, _ELASTIC_LARGE),
    "pixelate": Severities((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Severities((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}

CORRUPTIONS = Corruptions(
    {kind: f"with {kind.replace('_', ' ')} of severity {{:.3g}}" for kind in KINDS},
    level="severity",
    rule=Rule("must be 1, 2, 3, 4 or 5", lambda value: value in (1, 2, 3, 4, 5)),
    default=3,
    levels=(1, 2, 3, 4, 5),
)
"""As an evaluation asks for them."""
