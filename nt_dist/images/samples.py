"""Pictures as samples: one position and one target each.

What a training sample looks like is a function of (seed, global sample number): exact on a resume, in any layout, with
any number of threads.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from nt_dist.data.samples import Sample
from nt_dist.images.decoding import Box
from nt_dist.images.settings import Data
from nt_dist.images.sources import Pictures

_LOG_RATIO = math.log(4 / 3)  # of width to height, at most; with 8 to 100 % of the area as in Szegedy et al., 1409.4842
_SMALLEST_AREA = 0.08


@dataclass(frozen=True)
class PictureSamples:
    """See :class:`nt_dist.data.samples.Samples`."""

    pictures: Pictures
    data: Data
    side: int
    seed: int

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._sample(self.pictures.read(index, self.side), index)

    def drawn(self, index: int, number: int) -> Sample:
        """The ``index``-th picture, cropped and mirrored as global sample ``number`` is."""
        draws = uniform(self.seed, number)
        if self.data.crop == "resized":
            picture = self.pictures.read(index, self.side, resized_box(draws[:4]))
        else:
            picture = self.pictures.read(index, self.side)
            if self.data.crop == "pad":
                picture = shifted(picture, self.data.padding, draws[:2])
        return self._sample(picture[:, ::-1] if self.data.flip and draws[4] < 0.5 else picture, index)

    def _sample(self, picture: np.ndarray, index: int) -> Sample:
        return Sample(np.ascontiguousarray(picture), self.pictures.labels[index : index + 1], np.ones(1, np.float32))

    def blank(self) -> Sample:
        """A black picture, of weight 0."""
        picture = np.zeros((self.side, self.side, 3), np.uint8)
        return Sample(picture, np.zeros(1, np.int64), np.zeros(1, np.float32))


def uniform(seed: int, number: int) -> np.ndarray:
    """Eight numbers in [0, 1) that belong to a global sample number, float64."""
    words = hashlib.blake2b(f"picture/{seed}/{number}".encode(), digest_size=64).digest()
    return np.frombuffer(words, dtype="<u8") / 2.0**64


def shifted(picture: np.ndarray, padding: int, draws: np.ndarray) -> np.ndarray:
    """A picture [side, side, 3] shifted by up to ``padding`` pixels along both axes, mirrored at the edges."""
    down, right = (draws * (2 * padding + 1)).astype(int)
    side = len(picture)
    wide = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    return wide[down : down + side, right : right + side]


def resized_box(draws: np.ndarray) -> Box:
    """A part of a picture: 8 to 100 % of its area, of three to four up to four to three, anywhere."""
    area = _SMALLEST_AREA + draws[0] * (1 - _SMALLEST_AREA)
    ratio = math.exp((2 * draws[1] - 1) * _LOG_RATIO)
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    return draws[2] * (1 - width), draws[3] * (1 - height), width, height
