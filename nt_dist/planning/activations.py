"""Bytes that forward passes keep for backward, and the loss's, on one rank.

For one trail and one token, with hidden size H, key/value width K, ffn size F and heads h, each cut over t tensor
ranks where noted, elements of c bytes (4 in fp32, 2 in bf16), a block keeps

    two norms       2 · c H                       input
    their results   2 · c H                       the matrices' input
    attention       (c (2 H + 2 K) + 4 h) / t     rotated query and key, value, result; log-sum-exp in fp32
    feed-forward    4 c F / t                     gate, silu(gate), up, their product

The first norm's input after the fork is one tensor for all trails. The output keeps a norm's tensors (twice
with final_norm_twice) and its matrix' input, the embedding the 8 bytes of a row number. With activation checkpointing
blocks keep their input, c H, and one at a time has the rest and gradients of c (F / t + H). Rotary tables are left out.
Where trail ranks split the trunk, its layers see their share of the tokens.
To the byte what torch.autograd.graph.saved_tensors_hooks counts on a CPU.

The loss, with V pieces held here: logits c V, in backward as much for their gradient, and fp32 of some rows at a time.
In backward, a compact weight of e entries and k
slots has its dense matrix and that one's gradient, 2 c e, and what is taken of it, c k; a masked one its gradient and
the mask, which torch makes one of the gradient's type for their product, 2 c e.
"""

from nt_dist.config import Config
from nt_dist.llama.weights import padded_vocab_size
from nt_dist.model.functions import AT_ONCE
from nt_dist.planning.local_weights import LayerPart, Part

TOKEN_BYTES = 8  # int64


def element_bytes(config: Config) -> int:
    """Return the bytes of an activation's element."""
    return 2 if config.train.precision == "bf16" else 4


def micro_batch_tokens(config: Config, layer: LayerPart | None = None) -> int:
    """Return the tokens of one micro-batch on one rank, or those of them that ``layer`` sees there."""
    tokens = config.train.micro_batch_size * config.model.max_seq_len
    return tokens if layer is None else tokens // layer.batch_ranks


def kept_by(layer: LayerPart, config: Config) -> int:
    """Return the bytes that ``layer`` keeps of one micro-batch, without checkpointing."""
    tokens, hidden, element = micro_batch_tokens(config, layer), config.model.hidden_size, element_bytes(config)
    norm = scaled = element * hidden
    if layer.kind == "embedding":
        return tokens * TOKEN_BYTES
    if layer.kind == "output":
        return layer.trails * tokens * (norm * (2 if config.trails.final_norm_twice else 1) + scaled)
    heads, keys = config.model.num_attention_heads, config.model.key_value_heads * config.model.head_size
    attention = element * (2 * hidden + 2 * keys) + 4 * heads
    cut = (attention + 4 * element * config.model.ffn_size) // config.parallel.tensor
    shared = norm * (layer.trails - 1) if layer.forks else 0
    return tokens * (layer.trails * (2 * norm + 2 * scaled + cut) - shared)


def kept(layers: list[LayerPart], config: Config) -> int:
    """Return the bytes that a stage keeps of one micro-batch, checkpointing as the config says."""
    if not config.train.activation_checkpointing:
        return sum(kept_by(layer, config) for layer in layers)
    blocks = [layer for layer in layers if layer.kind == "block"]
    rest = sum(kept_by(layer, config) for layer in layers if layer.kind != "block")
    return rest + sum(input_bytes(layer, config) for layer in blocks)


def recomputed(layers: list[LayerPart], config: Config) -> int:
    """Return the bytes of the block that is computed again at one time, its gradients included; 0 if none is."""
    if not config.train.activation_checkpointing:
        return 0
    width = config.model.hidden_size + config.model.ffn_size // config.parallel.tensor
    blocks = [layer for layer in layers if layer.kind == "block"]

    def gradients(layer: LayerPart) -> int:
        return layer.trails * micro_batch_tokens(config, layer) * element_bytes(config) * width

    return max((kept_by(layer, config) + gradients(layer) for layer in blocks), default=0)


def hidden_bytes(layer: LayerPart, config: Config) -> int:
    """Return the bytes of the hidden state [T, B, S, H] that ``layer`` computes."""
    return layer.trails * micro_batch_tokens(config, layer) * config.model.hidden_size * element_bytes(config)


def input_bytes(layer: LayerPart, config: Config) -> int:
    """Return the bytes of the hidden state that ``layer``, which is not the first, reads; the fork copies nothing."""
    return hidden_bytes(layer, config) // (layer.trails if layer.forks else 1)


def received_bytes(layer: LayerPart, config: Config) -> int:
    """Return the bytes that a pipeline stage which begins with ``layer`` receives: of a split trunk a share."""
    shares = config.parallel.trail if layer.forks and config.splits_trunk else 1
    return input_bytes(layer, config) // shares


def logits_bytes(layers: list[LayerPart], config: Config) -> int:
    """Return the bytes of the logits, their gradient and what is computed of it at once; 0 before the last stage."""
    element, one = element_bytes(config), num_logits(layers, config)
    at_once = (4 if element == 4 else 8) * min(one, AT_ONCE["cuda"])  # bf16 is made fp32 beside its result
    return 2 * element * one + at_once


def product_bytes(layers: list[LayerPart], config: Config) -> int:
    """Return the most that a backward product takes: matrices, index, and the logits' gradient for the last."""
    element, most = element_bytes(config), 0
    for layer in layers:
        logits = element * num_logits(layers, config) if layer.kind == "output" else 0
        most = max(most, logits + max(_product(part, element) for part in layer.parts))
    return most


def _product(part: Part, element: int) -> int:
    if part.spec.uses == 0:
        return 0
    if part.storage == "compact":
        return element * (2 * part.entries + part.slots)
    return (2 if part.storage == "masked" else 1) * element * part.entries


def num_logits(layers: list[LayerPart], config: Config) -> int:
    """Return the elements of the logits of one micro-batch, all trails held here; 0 before the last stage."""
    if layers[-1].kind != "output":
        return 0
    rows = padded_vocab_size(config) // config.parallel.tensor
    return layers[-1].trails * micro_batch_tokens(config) * rows
