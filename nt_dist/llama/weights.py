"""The table of a LLaMA's weights: names, shapes, what cuts them.

Column-parallel matrices are cut along their rows (axis 0), row-parallel ones along their columns (axis 1).
"""

import math

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
    hidden, ffn = model.hidden_size, model.ffn_size
    key_value = config.model.key_value_heads * config.model.head_size
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
    hidden, vocab = config.model.hidden_size, config.model.vocab_size
    shards, trails = config.sparsity.topology_shards, config.trails.count
    padded = (padded_vocab_size(config), hidden)

    def norm(name: str, in_trail: bool, layer: str) -> WeightSpec:
        copies = trails if in_trail else 1
        return WeightSpec(name, (hidden,), 0, copies, 1, None, 1.0, None, "scale", in_trail, layer, uses=0)

    def matrix(name: str, shape, cut_axis: int, in_trail: bool, layer: str, role="linear", valid=None) -> WeightSpec:
        copies = trails if in_trail else 1
        init = EMBEDDING_INIT_STD if role == "lookup" else INIT_STD
        uses = 1 if role == "linear" else 0
        return WeightSpec(name, shape, cut_axis, copies, shards, valid, 1.0, init, role, in_trail, layer, uses)

    specs = [matrix("embedding", padded, COLUMN, config.trails.fork == "embedding", "embedding", "lookup", vocab)]
    for block in range(config.model.num_layers):
        behind, layer = block >= config.trunk_layers, f"blocks.{block}"
        for name, (rows, columns, cut_axis) in _block_shapes(config).items():
            if name in ("attention.query", "mlp.gate"):
                specs.append(norm(f"{layer}.{name.split('.')[0]}.norm", behind, layer))
            specs.append(matrix(f"{layer}.{name}", (rows, columns), cut_axis, behind, layer))
    return [*specs, norm("norm", True, "output"), matrix("output", padded, COLUMN, True, "output", valid=vocab)]
