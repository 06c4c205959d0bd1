"""The table of a LLaMA's weights: names, shapes, what cuts them; and what its layers keep for backward, for plans.

Column-parallel matrices are cut along their rows (axis 0), row-parallel ones along their columns (axis 1).
"""

import math
from functools import partial
from typing import Any

from nt_dist.config.family import LayerActivations
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


def weights(config: Config) -> list[WeightSpec]:
    """Return every weight of the model, in the order in which the layers use them."""
    model, shards = config.model, config.sparsity.topology_shards
    hidden, ffn, key_value = model.hidden_size, model.ffn_size, model.key_value_heads * model.head_size
    scale = {"shape": (hidden,), "init": None, "role": "scale", "uses": 0}
    matrix = {"shards": shards, "init": INIT_STD}
    table = matrix | {"shape": (padded_vocab_size(config), hidden), "valid": model.vocab_size}
    lookup = table | {"init": EMBEDDING_INIT_STD, "role": "lookup", "uses": 0}
    in_block = {
        "attention.norm": scale,
        "attention.query": matrix | {"shape": (hidden, hidden), "cut_axis": COLUMN},
        "attention.key": matrix | {"shape": (key_value, hidden), "cut_axis": COLUMN},
        "attention.value": matrix | {"shape": (key_value, hidden), "cut_axis": COLUMN},
        "attention.output": matrix | {"shape": (hidden, hidden), "cut_axis": ROW},
        "mlp.norm": scale,
        "mlp.gate": matrix | {"shape": (ffn, hidden), "cut_axis": COLUMN},
        "mlp.up": matrix | {"shape": (ffn, hidden), "cut_axis": COLUMN},
        "mlp.down": matrix | {"shape": (hidden, ffn), "cut_axis": ROW},
    }

    def spec(name: str, layer: str, in_trail: bool, rest: dict[str, Any]) -> WeightSpec:
        return WeightSpec(name, trails=config.trails.count if in_trail else 1, in_trail=in_trail, layer=layer, **rest)

    blocks = [
        spec(f"blocks.{block}.{name}", f"blocks.{block}", block >= config.trunk_layers, rest)
        for block in range(model.num_layers)
        for name, rest in in_block.items()
    ]
    embedding = spec("embedding", "embedding", config.trails.fork == "embedding", lookup)
    return [embedding, *blocks, spec("norm", "output", True, scale), spec("output", "output", True, table)]


def activations(config: Config, layer: str) -> LayerActivations:
    """Return what ``layer`` keeps for backward and exchanges, in bytes for one trail and one token.

    With hidden size H, key/value width K, ffn size F and heads h, each cut over t tensor ranks where noted, elements of
    c bytes (4 in fp32, 2 in bf16), a block keeps

        two norms       2 · c H                       input
        their results   2 · c H                       the matrices' input
        attention       (c (2 H + 2 K) + 4 h) / t     rotated query and key, value, result; log-sum-exp in fp32
        feed-forward    4 c F / t                     gate, silu(gate), up, their product

    The output keeps a norm's tensors (twice with final_norm_twice) and its matrix' input, the embedding row numbers. A
    block that is computed again has gradients of c (F / t + H) beside these. Rotary tables are left out. To the byte
    what torch.autograd.graph.saved_tensors_hooks counts on a CPU. With parallel.sequence_parallel all that is H wide is
    cut by t too, but for the output matrix' input.

    The tensor ranks add up a state after the embedding, twice forward and twice backward in each block (once more where
    it is computed again) and backward before the output. With parallel.sequence_parallel each time shares are gathered,
    or sums scattered, and gathered once the other way round; what a block's matrices read is gathered twice more.
    """
    model, element, tensor = config.model, config.element_bytes, config.parallel.tensor
    whole = element * model.hidden_size
    state = whole // tensor if config.cuts_sequence else whole
    exchange = partial(_exchanged, config, whole)
    if layer == "embedding":
        return LayerActivations(8, state, inner=0, **exchange(1))  # int64
    if layer == "output":
        logits = element * padded_vocab_size(config) // tensor
        inner = whole + (state if config.trails.final_norm_twice else 0)
        return LayerActivations(state, logits, inner, **exchange(1))
    keys = model.key_value_heads * model.head_size
    attention = element * (2 * model.hidden_size + 2 * keys) + 4 * model.num_attention_heads
    inner = 3 * state + (attention + 4 * element * model.ffn_size) // tensor
    if not config.train.activation_checkpointing:
        return LayerActivations(state, state, inner, **exchange(4, 2))
    recomputed = state + element * model.ffn_size // tensor
    return LayerActivations(state, state, inner, **exchange(5, 1), recomputed=recomputed)


def _exchanged(config: Config, state: int, times: int, again: int = 0) -> dict[str, int]:
    """Bytes for a position of a state that is added up so often, and gathered ``again``."""
    if not config.cuts_sequence:
        return {"all_reduced": times * state}
    return {"all_gathered": (times + again) * state, "reduce_scattered": times * state, "gathered": state}
