"""The whole model: one list of layers, which a pipeline can cut anywhere."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nt_dist.config.settings import Config
from nt_dist.messages import LOGGER
from nt_dist.model.chunks import ChunkedOutput, Labels
from nt_dist.model.place import Place
from nt_dist.model.weights import choose_storages, statistic_specs, weight_specs
from nt_dist.sparsity.statistic import Statistic
from nt_dist.sparsity.storages import STORAGES
from nt_dist.sparsity.weight import Weight

MakeWeight = Callable[[str], Weight | Statistic]  # from a full name
FORK = "fork"
BACKEND = "inductor"
"""What torch.compile makes of the graph."""


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


def sums_of_losses(
    last: nn.Module, x: torch.Tensor, place: Place, labels: Labels, joint_mean: str, smoothing: float
) -> torch.Tensor:
    """Return what :meth:`Place.trail_losses` gives for the logits of the last layer, of which ``x`` is the input."""
    if isinstance(last, ChunkedOutput):
        return last.losses(x, labels, joint_mean, smoothing)
    return place.trail_losses(last(x), *labels, joint_mean, smoothing)


class TrailsModel(nn.Sequential):
    """The layers in order, and the losses."""

    def __init__(self, config: Config, layers: list[nn.Module], place: Place):
        super().__init__(*layers)
        self.place, self.recompute = place, config.train.activation_checkpointing
        self.how = config.trails.trained_mean, config.train.label_smoothing
        self._weights, self._compiled = list(weights_of(self).values()), None

    def forward(self, inputs: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        """Return the trails' logits [T, B, S, V] for inputs [B, S].

        With labels, targets and their weights [B, S], the sums of token losses as :meth:`Place.trail_losses` has them.
        """
        if labels and self._compiled and not any(weight.collecting for weight in self._weights):
            return self._compiled(inputs, *labels)
        return self._pass(inputs, *labels)

    def _pass(self, inputs: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
        *layers, last = self
        x = run_layers(layers, inputs, self.recompute and self.training)
        return sums_of_losses(last, x, self.place, labels, *self.how) if labels else last(x)

    def compile_losses(self) -> None:
        """From now on compute the losses, with their gradients, as one graph, compiled at the first pass.

        Passes that collect dense gradients stay as they are: a graph hands out no more than its parameters'. So do
        all, with a warning, where there is no C++ compiler.
        """
        from torch._inductor import cpp_builder, exc  # slow to import, so only where it is needed

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            LOGGER.warning("train.compile = true: there is no C++ compiler here, so nothing is compiled")
            return
        self._compiled = torch.compile(self._pass, backend=BACKEND, fullgraph=True, dynamic=False)


def weights_of(module: nn.Module) -> dict[str, Weight]:
    """Return the weights in ``module`` by their full names."""
    return {each.spec.name: each for each in module.modules() if isinstance(each, Weight)}


def statistics_of(module: nn.Module) -> dict[str, Statistic]:
    """Return the statistics in ``module`` by their full names."""
    return {each.spec.name: each for each in module.modules() if isinstance(each, Statistic)}


def build_model(config: Config, place: Place | None = None, device: torch.device | str = "cpu") -> TrailsModel:
    """Build the part of the model that ``place`` holds, by default all, and draw its initial state (not on meta)."""
    place = place or Place()
    model = TrailsModel(config, [make() for make in layer_makers(config, place, device)], place)
    if torch.device(device).type != "meta":
        for weight in weights_of(model).values():
            weight.reset(config.train.seed)
    return model
