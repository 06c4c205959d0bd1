"""Pictures as samples: one position and one target each.

What a training sample looks like is a function of (seed, global sample number): exact on a resume, in any layout, with
any number of threads.
"""

import hashlib
import logging
import math
import threading
from dataclasses import dataclass, field

import numpy as np

from nt_dist.data.samples import Sample
from nt_dist.errors import DataError
from nt_dist.images.augment import cutmix, drawn_share, mixup, randaugment
from nt_dist.images.corruptions import corrupt
from nt_dist.images.decoding import Crop
from nt_dist.images.settings import Data
from nt_dist.images.sources import Pictures

_LOG_RATIO = math.log(4 / 3)  # of width to height, at most; with 8 to 100 % of the area as in Szegedy et al., 1409.4842
_SMALLEST_AREA = 0.08
_logger = logging.getLogger(__name__)


class Broken:
    """The pictures that cannot be read, each counted once, up to ``share`` of ``total``."""

    def __init__(self, share: float, total: int):
        self.share, self.total = share, total
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    def add(self, index: int, error: DataError) -> None:
        """Count a picture.

        Raises:
            DataError: They are too many.
        """
        with self._lock:
            self._seen.add(index)
            count = len(self._seen)
        if count > self.share * self.total or count == self.total:
            rule = f"data.max_bad_share = {self.share} of {self.total} pictures may be like that"
            raise DataError(f"{error}; {count} so far, {rule}") from error
        if count == 1:
            _logger.warning("%s; it is passed over, as data.max_bad_share = %s allows", error, self.share)


@dataclass(frozen=True)
class PictureSamples:
    """See :class:`nt_dist.data.samples.Samples`."""

    pictures: Pictures
    data: Data
    side: int
    seed: int
    broken: Broken = field(compare=False)

    @property
    def turns(self) -> int:
        """See :func:`nt_dist.data.loader.spread`."""
        return self.pictures.turns

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._sample(self.pictures.read(index, self.side), index)
        except DataError as error:
            self.broken.add(index, error)
            return self.blank()

    def drawn(self, index: int, number: int) -> Sample:
        """The ``index``-th picture, cropped, mirrored, augmented and mixed as global sample ``number`` is.

        In place of one that cannot be read the next that can is taken. A mixed sample has two targets, and its weights
        are their shares.
        """
        data = self.data
        picture, index = self._augmented(index, number, "picture")
        if not (data.mixup or data.cutmix):
            return self._sample(picture, index)
        draws = uniform(self.seed, number, "mix")
        other, partner = self._augmented(int(draws[0] * len(self)), number, "partner")
        if not data.cutmix or (data.mixup and draws[1] < 0.5):
            share = drawn_share(data.mixup, draws[2])
            picture = mixup(picture, other, share)
        else:
            picture, share = cutmix(picture, other, drawn_share(data.cutmix, draws[2]), draws[3:5])
        return Sample(picture, self.pictures.labels[[index, partner]], np.array([share, 1 - share], np.float32))

    def _augmented(self, index: int, number: int, of: str) -> tuple[np.ndarray, int]:
        """A picture with the draws of global sample ``number``, before it is mixed, and whose it is after all."""
        draws = uniform(self.seed, number, of)
        crop = resized_crop(draws[:4]) if self.data.crop == "resized" else None
        while True:
            try:
                picture = self.pictures.read(index, self.side, crop)
                break
            except DataError as error:
                self.broken.add(index, error)
                index = (index + 1) % len(self)
        if self.data.crop == "pad":
            picture = shifted(picture, self.data.padding, draws[:2])
        if self.data.flip and draws[4] < 0.5:
            picture = picture[:, ::-1]
        if self.data.randaugment:
            operations = [uniform(self.seed, number, f"{of}/{each}") for each in range(self.data.randaugment)]
            picture = randaugment(picture, self.data.randaugment_magnitude, operations)
        return picture, index

    def _sample(self, picture: np.ndarray, index: int) -> Sample:
        label = self.pictures.labels[index : index + 1]
        return Sample(np.array(picture, order="C"), label.copy(), np.ones(1, np.float32))

    def blank(self) -> Sample:
        """A black picture, of weight 0."""
        picture = np.zeros((self.side, self.side, 3), np.uint8)
        return Sample(picture, np.zeros(1, np.int64), np.zeros(1, np.float32))


@dataclass(frozen=True)
class CorruptedSamples:
    """The same pictures, each corrupted as severities.py says; see :class:`nt_dist.data.samples.Samples`."""

    samples: PictureSamples
    kind: str
    severity: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        return sample._replace(inputs=corrupt(sample.inputs, self.kind, self.severity, index))

    def blank(self) -> Sample:
        """A black picture, of weight 0."""
        return self.samples.blank()


def uniform(seed: int, number: int, of: str = "picture") -> np.ndarray:
    """Eight numbers in [0, 1) that belong to a global sample number, float64; others for each name ``of`` a use."""
    words = hashlib.blake2b(f"{of}/{seed}/{number}".encode(), digest_size=64).digest()
    return (np.frombuffer(words, dtype="<u8") >> 11) / 2.0**53


def shifted(picture: np.ndarray, padding: int, draws: np.ndarray) -> np.ndarray:
    """A picture [side, side, 3] shifted by up to ``padding`` pixels along both axes, mirrored at the edges."""
    down, right = (draws * (2 * padding + 1)).astype(int)
    side = len(picture)
    wide = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    return wide[down : down + side, right : right + side]


def resized_crop(draws: np.ndarray) -> Crop:
    """A part of a picture: 8 to 100 % of its area, of three to four up to four to three, anywhere."""
    area = _SMALLEST_AREA + draws[0] * (1 - _SMALLEST_AREA)
    return Crop(area, math.exp((2 * draws[1] - 1) * _LOG_RATIO), draws[2], draws[3])
