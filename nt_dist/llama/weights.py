"""The table of a LLaMA's weights: names, shapes, what cuts them.

Column-parallel matrices are cut along their rows (axis 0), row-parallel ones along their columns (axis 1).
"""

import math
from typing import Any

from nt_dist.config.settings import Config
from nt_dist.sparsity.spec import WeightSpec

# Of initial values, as the paper's public code draws fresh ones: an embedding begins near the scale at which norms hand
# it on (decision 0035).
INIT_STD = 0.02
EMBEDDING_INIT_STD = math.sqrt(2 / 5)
COLUMN, ROW = 0, 1


def padded_vocab_size(config: Config) -> int:
    """Return the rows of embedding and output matrices: the vocabulary, up to a multiple of topology_shards."""
    shards = config.sparsity.topology_shards
    return -(-config.model.vocab_size // shards) * shards


def _block_shapes(config: Config) -> dict[str, tuple[int, int, int]]:
    model = config.model
    hidden, ffn, key_value = model.hidden_size, model.ffn_size, model.key_value_heads * model.head_size
    return {
        "attention.query": (hidden, hidden, COLUMN),
        "attention.key": (key_value, hidden, COLUMN),
        "attention.value": (key_value, hidden, COLUMN),
        "attention.output": (hidden, hidden, ROW),
        "mlp.gate": (ffn, hidden, COLUMN),
        "mlp.up": (ffn, hidden, COLUMN),
        "mlp.down": (hidden, ffn, ROW),
    }


def weights(config: Config) -> list[WeightSpec]:
    """Return every weight of the model, in the order in which the layers use them."""
    hidden, shards = config.model.hidden_size, config.sparsity.topology_shards
    scale = {"shape": (hidden,), "init": None, "role": "scale", "uses": 0}
    matrix = {"shards": shards, "init": INIT_STD}
    table = matrix | {"shape": (padded_vocab_size(config), hidden), "valid": config.model.vocab_size}
    lookup = table | {"init": EMBEDDING_INIT_STD, "role": "lookup", "uses": 0}

    def spec(name: str, layer: str, in_trail: bool, **rest: Any) -> WeightSpec:
        copies = config.trails.count if in_trail else 1
        return WeightSpec(name, trails=copies, in_trail=in_trail, layer=layer, **rest)

    specs = [spec("embedding", "embedding", config.trails.fork == "embedding", **lookup)]
    for block in range(config.model.num_layers):
        layer, in_trail = f"blocks.{block}", block >= config.trunk_layers
        for name, (rows, columns, cut_axis) in _block_shapes(config).items():
            if name in ("attention.query", "mlp.gate"):
                specs.append(spec(f"{layer}.{name.split('.')[0]}.norm", layer, in_trail, **scale))
            shape = {"shape": (rows, columns), "cut_axis": cut_axis}
            specs.append(spec(f"{layer}.{name}", layer, in_trail, **shape, **matrix))
    return [*specs, spec("norm", "output", True, **scale), spec("output", "output", True, **table)]
