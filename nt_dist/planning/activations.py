"""Bytes that forward passes keep for backward, and the loss's, on one rank.

For one trail and one token, with hidden size H, key/value width K, ffn size F and heads h, each cut over t tensor
ranks where noted, elements of c bytes (4 in fp32, 2 in bf16), a block keeps

    two norms       2 · (4 H + 4 + 2 c H)         input in fp32, 1 / rms in fp32, normalized, scaled
    attention       (c (2 H + 2 K) + 4 h) / t     rotated query and key, value, result; log-sum-exp in fp32
    feed-forward    4 c F / t                     gate, silu(gate), up, their product

In fp32 the first norm's input after the fork is one tensor for all trails. The output keeps c-byte and fp32 tensors as
one norm does (twice with final_norm_twice); the embedding the 8 bytes of a row number. With activation checkpointing a
block keeps its input, c H, and one block at a time has the rest. Rotary tables are left out. As counted with
torch.autograd.graph.saved_tensors_hooks on a CPU, exactly; a fused norm on a GPU keeps its input in bf16.

The loss, with V pieces held here: logits c V, log-probabilities (or probabilities) in fp32, and one trail's logits
in fp32 where they are not already; backward, gradients of c V twice. Products have the dense matrix and its gradient.
"""

from nt_dist.config import Config
from nt_dist.model.parts import LayerPart, Part

TOKEN_BYTES = 8  # int64


def element_bytes(config: Config) -> int:
    """Return the bytes of an activation's element."""
    return 2 if config.train.precision == "bf16" else 4


def micro_batch_tokens(config: Config) -> int:
    """Return the tokens of one micro-batch on one rank."""
    return config.train.micro_batch_size * config.model.max_seq_len


def kept_by(layer: LayerPart, config: Config) -> int:
    """Return the bytes that ``layer`` keeps of one micro-batch, without checkpointing."""
    tokens, hidden, element = micro_batch_tokens(config), config.model.hidden_size, element_bytes(config)
    norm = 4 * hidden + 4 + 2 * element * hidden
    if layer.kind == "embedding":
        return tokens * TOKEN_BYTES
    if layer.kind == "output":
        return layer.trails * tokens * norm * (2 if config.trails.final_norm_twice else 1)
    heads, keys = config.model.num_attention_heads, config.num_kv_heads * config.head_size
    attention = element * (2 * hidden + 2 * keys) + 4 * heads
    cut = (attention + 4 * element * config.model.ffn_size) // config.parallel.tensor
    shared = 4 * hidden * (layer.trails - 1) if layer.forks and element == 4 else 0
    return tokens * (layer.trails * (2 * norm + cut) - shared)


def kept(layers: list[LayerPart], config: Config) -> int:
    """Return the bytes that a stage keeps of one micro-batch, checkpointing as the config says."""
    if not config.train.activation_checkpointing:
        return sum(kept_by(layer, config) for layer in layers)
    blocks = [layer for layer in layers if layer.kind == "block"]
    rest = sum(kept_by(layer, config) for layer in layers if layer.kind != "block")
    inputs = sum(hidden_bytes(1 if layer.forks else layer.trails, config) for layer in blocks)
    return rest + inputs


def recomputed(layers: list[LayerPart], config: Config) -> int:
    """Return the bytes of the block that is computed again at one time; 0 without checkpointing."""
    if not config.train.activation_checkpointing:
        return 0
    return max((kept_by(layer, config) for layer in layers if layer.kind == "block"), default=0)


def hidden_bytes(trails: int, config: Config) -> int:
    """Return the bytes of a hidden state [trails, B, S, H]."""
    return trails * micro_batch_tokens(config) * config.model.hidden_size * element_bytes(config)


def logits_bytes(layers: list[LayerPart], config: Config) -> int:
    """Return the most that logits, losses and their gradients take at one time; 0 before the last stage."""
    output = layers[-1]
    if output.kind != "output":
        return 0
    element = element_bytes(config)
    one = micro_batch_tokens(config) * config.padded_vocab_size // config.parallel.tensor
    forward = output.trails * one * (element + 4) + (4 * one if element < 4 else 0)
    return max(forward, output.trails * one * 2 * element)


def product_bytes(parts: list[Part], config: Config) -> int:
    """Return the most that a product's dense matrix and its gradient take."""
    return 2 * element_bytes(config) * max((part.entries for part in parts if part.spec.role == "linear"), default=0)
