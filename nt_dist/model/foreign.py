"""A model of another program, which a family can take its weights from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from nt_dist.config.settings import Config
from nt_dist.model.weights import statistic_specs, weight_specs
from nt_dist.sparsity.spec import WeightSpec


@dataclass(frozen=True)
class Foreign(ABC):
    """A model in one of the layouts that a family knows; each layout is a class."""

    path: Path  # its folder
    settings: dict[str, Any]  # its config.json
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor that is part of the model, by key
    read: Callable[[str], torch.Tensor]  # gives a tensor, by key

    title: ClassVar[str]  # what has this layout, as in "a dense LLaMA"
    sign: ClassVar[str]  # what tells it from others, for messages
    may_be_pickled: ClassVar[bool] = False  # whether it is also read from pytorch_model.bin

    @classmethod
    @abstractmethod
    def fits(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Say whether tensors are in this layout."""

    @abstractmethod
    def key(self, config: Config, spec: WeightSpec, trail: int) -> str:
        """Return the key of what a weight's or statistic's trail is taken from."""

    @abstractmethod
    def sizes(self, config: Config) -> dict[str, tuple[str, Any]]:
        """Return what a config shares with :attr:`settings`: by our key, their name and our value."""

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Return what settings mean, by name, that say nothing."""

    @abstractmethod
    def rules(self, config: Config) -> Iterator[str]:
        """Yield a message for each thing besides :meth:`sizes` in which model and config cannot be the same."""

    @abstractmethod
    def check_data(self, config: Config, data: Any) -> None:
        """DataError, with what to set instead, for opened data that its folder says it was not trained on."""

    @property
    def settings_file(self) -> Path:
        """Where the settings were read."""
        return self.path / "config.json"

    def problems(self, config: Config) -> list[str]:
        """Return everything in which it is not the model of ``config``, key, value and rule each."""
        found, defaults = [], self.defaults()
        for key, (name, value) in self.sizes(config).items():
            expected = defaults.get(name) if self.settings.get(name) is None else self.settings[name]
            if expected is None:
                found.append(f"{self.settings_file}: has no {name}")
            elif value != expected:
                found.append(f"{key} = {value} must be {expected}, the {name} of the imported model")
        return [*found, *self.rules(config)] or self._tensor_problems(config)

    def _tensor_problems(self, config: Config) -> list[str]:
        there, path = self.shapes, self.path
        expected = {
            self.key(config, spec, trail): spec.real_shape
            for spec in (weight_specs(config) | statistic_specs(config)).values()
            for trail in range(spec.trails)
        }
        found = [f"{path}: has no tensor {name}" for name in expected if name not in there]
        found += [
            f"{path}: {name} has shape {list(there[name])}, must have {list(shape)}"
            for name, shape in expected.items()
            if there.get(name, shape) != shape
        ]
        if strangers := sorted(there.keys() - expected):
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            found.append(f"{path}: has tensors of another model: {', '.join(strangers[:3])}{more}")
        return found
