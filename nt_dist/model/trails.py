"""The whole model: one list of layers, which a pipeline can cut anywhere."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nt_dist.config.settings import Config
from nt_dist.model.place import Place
from nt_dist.model.weights import choose_storages, statistic_specs, weight_specs
from nt_dist.sparsity.statistic import Statistic
from nt_dist.sparsity.storages import STORAGES
from nt_dist.sparsity.weight import Weight

MakeWeight = Callable[[str], Weight | Statistic]  # from a full name
FORK = "fork"


class ResidualBlock(nn.Module):
    """A layer of which a model has many: its activations are computed again in backward where that is asked for."""


class Fork(nn.Module):
    """Where the trunk parts into trails."""

    def __init__(self, num_trails: int, place: Place):
        super().__init__()
        self.num_trails, self.place = num_trails, place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give every trail the trunk's state: [1, b, S, H] → [T, B, S, H]; b = B but where a trunk is shared."""
        return self.place.fork(x).expand(self.num_trails, -1, -1, -1)


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order, "fork" among them where the trunk has any."""
    specs = config.family.weights(config)
    names = list(dict.fromkeys(spec.layer for spec in specs))
    first = names.index(next(spec.layer for spec in specs if spec.in_trail))
    return [*names[:first], FORK, *names[first:]] if first else names


def num_local_trails(config: Config, place: Place) -> int:
    """Return how many trails are held here."""
    return len(place.trails(next(spec for spec in weight_specs(config).values() if spec.in_trail)))


def layer_makers(config: Config, place: Place, device: torch.device | str = "cpu") -> list[Callable[[], nn.Module]]:
    """Return one function per layer of :func:`layer_names` that makes it: a pipeline stage makes only its own."""
    specs, statistics = weight_specs(config), statistic_specs(config)
    storages = choose_storages(config)

    def make(name: str) -> Weight | Statistic:
        spec = specs.get(name) or statistics[name]
        kind = STORAGES[storages[name]] if name in specs else Statistic
        return kind(spec, place.trails(spec), place.shards(spec), device)

    makers = {FORK: lambda: Fork(num_local_trails(config, place), place), **config.family.layers(config, make, place)}
    return [makers[name] for name in layer_names(config)]


def run_layers(layers: Iterable[nn.Module], x: torch.Tensor, recompute: bool) -> torch.Tensor:
    """Pass ``x`` through ``layers``; with ``recompute`` the blocks' activations are computed again in backward."""
    for layer in layers:
        again = recompute and isinstance(layer, ResidualBlock)
        x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
    return x


class TrailsModel(nn.Sequential):
    """The layers in order; with ``recompute`` blocks' activations are computed again in backward, and not kept."""

    def __init__(self, layers: list[nn.Module], recompute: bool = False):
        super().__init__(*layers)
        self.recompute = recompute

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the trails' logits [T, B, S, V] for tokens [B, S]."""
        return run_layers(self, tokens, self.recompute and self.training)


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """Return the weights in ``module`` by their full names."""
    return {each.spec.name: each for each in module.modules() if isinstance(each, Weight)}


def statistics_of(module: nn.Module) -> dict[str, Statistic]:
    """Return the statistics in ``module`` by their full names."""
    return {each.spec.name: each for each in module.modules() if isinstance(each, Statistic)}


def build_model(config: Config, place: Place | None = None, device: torch.device | str = "cpu") -> TrailsModel:
    """Build the part of the model that ``place`` holds, by default all, and draw its initial state (not on meta)."""
    layers = [make() for make in layer_makers(config, place or Place(), device)]
    model = TrailsModel(layers, config.train.activation_checkpointing)
    if torch.device(device).type != "meta":
        for weight in weights_of(model).values():
            weight.reset(config.train.seed)
    return model
