"""What an export asks about what a model does: what belongs to it beside its weights, and how it is tried out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from nt_dist.config.settings import Config
from nt_dist.inference import Ensemble


class Task(ABC):
    """One of :attr:`nt_dist.config.family.Family.task`."""

    name: ClassVar[str]
    auto: ClassVar[type]
    """transformers' class that loads any model for it."""
    example: ClassVar[str]
    """Code for the card; ``{remote}`` stands for what allows remote code."""

    @abstractmethod
    def sizes(self, config: Config) -> str:
        """What the card says of inputs and outputs."""

    @abstractmethod
    def settle(self, model: PreTrainedModel, ensemble: Ensemble) -> None:
        """Tell a model what the run knows beside its weights: special tokens, names of classes."""

    @abstractmethod
    def write(self, ensemble: Ensemble, folder: Path) -> None:
        """Write what makes the model's inputs, for transformers.

        Raises:
            DataError: It cannot be written so.
        """

    @abstractmethod
    def inputs(self, ensemble: Ensemble, folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return inputs to compare on: for the ensemble, and the same as the exported ``folder`` makes them."""

    def more_pairs(self, model: PreTrainedModel, inputs: dict[str, Any], answer: Any) -> Iterator[tuple]:
        """Yield pairs of the model's logits that have to agree, given its ``answer`` to ``inputs``."""
        yield from ()
