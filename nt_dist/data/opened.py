"""What a family opens for a run: samples, and what says which they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

from nt_dist.data.samples import Samples, TrainingSamples

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
