"""What a model family tells the rest of the package: the only door to a family, and what a new one has to write.

A family is one folder. Its object imports no torch, so that configs are checked before anything slow is loaded; its
methods import what they need.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar


class Family(ABC):
    """One model family; all objects of a class are equal."""

    name: ClassVar[str]
    """As ``model.family`` gives it."""
    sections: ClassVar[Mapping[str, type]]
    """Its own sections of a config: "model", which has ``num_layers``, the residual blocks on the way to an output, and
    "data"."""
    rules: ClassVar[tuple[tuple[tuple[str, ...], Callable[[Any], Iterator[str]]], ...]]
    """Rules over several settings: the keys that one reads, and what yields a message for each thing that is wrong."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @abstractmethod
    def weight_names(self, config: Any) -> list[str]:
        """Names of all weights, as ``sparsity.exempt`` may name them; without torch."""

    @abstractmethod
    def weights(self, config: Any) -> list[Any]:
        """The :class:`nt_dist.sparsity.spec.WeightSpec` of every weight, in the order in which the layers use them.

        Their densities are 1: model/weights.py spreads the config's density over them.
        """

    @abstractmethod
    def layers(self, config: Any, make: Callable[[str], Any], place: Any) -> dict[str, Callable[[], Any]]:
        """One function per layer that makes it, by the layer's name, in order; ``make`` makes a weight by its name."""
