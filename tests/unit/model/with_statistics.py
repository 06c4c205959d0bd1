"""A family for tests of state that is no weight: a LLaMA that keeps statistics which nothing reads."""

import dataclasses

import torch

from nt_dist.config import Config
from nt_dist.llama.family import Llama
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.statistic import Statistic


class WithStatistics(Llama):
    """A LLaMA with one statistic for each trail, whole on all tensor ranks, and one in the trunk, which they cut."""

    def weights(self, config):
        mean = WeightSpec(
            "mean", (6,), 0, config.trails.count, init=0.0, role="statistic", in_trail=True, layer="output", uses=0
        )
        spread = WeightSpec("spread", (3, 8), 1, shards=4, init=None, role="statistic", layer="embedding", uses=0)
        return [*super().weights(config), mean, spread]

    def layers(self, config, make, place):
        makers = super().layers(config, make, place)

        def with_statistic(layer_name, name):
            def make_both():
                layer = makers[layer_name]()
                layer.statistic = make(name)
                return layer

            return make_both

        return makers | {"output": with_statistic("output", "mean"), "embedding": with_statistic("embedding", "spread")}


def with_statistics(config: Config) -> Config:
    """Return ``config`` for a model with statistics."""
    return dataclasses.replace(config, family=WithStatistics())


def fill(statistic: Statistic) -> None:
    """Give every entry of every trail and shard its own value, the same in all layouts, which bf16 would round."""
    for trail in statistic.trails:
        for shard in statistic.shards:
            part = statistic.block(statistic.values, trail, shard)
            values = 1 + torch.arange(part.numel(), dtype=torch.float32) / 1000 + 10 * trail + 100 * shard
            part.copy_(values.view(part.shape))


def contents(statistics: dict[str, Statistic]) -> dict[tuple[str, int, int], torch.Tensor]:
    """Return the values by (statistic, trail, shard), in no particular layout."""
    return {
        (name, trail, shard): each.block(each.values, trail, shard).clone()
        for name, each in statistics.items()
        for trail in each.trails
        for shard in each.shards
    }
