"""What a data set gives: samples by number. Without torch, which the processes that tokenize do without.

A sample has P positions with a target each: every token of a text, one for a whole picture.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    """One sample. All samples of a data set have the same shapes and types.

    One position may have several targets in training; their weights are their shares of it then, and add up to 1.
    """

    inputs: np.ndarray  # what the model reads, of any type. [...]
    targets: np.ndarray  # the right class at each position, int64. [P]
    weights: np.ndarray  # 1 where the target is real, 0 on padding, float32. [P]


class Samples(Protocol):
    """Samples by number: all that training and evaluation know of a data set."""

    def __len__(self) -> int:
        """Samples there are; at least one to train on."""

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; its arrays are the caller's. IndexError if there is none, DataError if it cannot be read."""

    def blank(self) -> Sample:
        """A sample of zeros, of the shapes and types of the others: it fills up a batch with weight 0."""


class TrainingSamples(Samples, Protocol):
    """Samples to train on."""

    def drawn(self, index: int, number: int) -> Sample:
        """Read one sample as global sample ``number`` of the training: cropped and mirrored, for instance.

        What is random in it is a function of the seed and the number: a resume or another layout changes nothing.
        """


Exchange = Callable[[Callable[[], Any]], Any]
"""Runs work on the writer only, and gives its result, or raises its error, on every rank."""


class OpenData(NamedTuple):
    """A run's data, or other samples to evaluate on, which have none to train on and no digest."""

    train: TrainingSamples | None
    validation: Samples
    digest: str | None  # runs with the same one train on the same samples
    identity: dict[str, Any]  # what a checkpoint keeps, so that a model stays with its tokenizer or its classes
    foreign: str = ""  # why the targets of other samples are not those of the model; "" where they are
    tokenizer: Any = None  # of texts
    among: Sequence[int] = ()  # the classes that other samples have, where these are only some of the model's
