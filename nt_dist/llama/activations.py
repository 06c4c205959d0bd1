"""Bytes that the layers of a LLaMA keep for backward, for one trail and one token.

With hidden size H, key/value width K, ffn size F and heads h, each cut over t tensor ranks where noted, elements of c
bytes (4 in fp32, 2 in bf16), a block keeps

    two norms       2 · c H                       input
    their results   2 · c H                       the matrices' input
    attention       (c (2 H + 2 K) + 4 h) / t     rotated query and key, value, result; log-sum-exp in fp32
    feed-forward    4 c F / t                     gate, silu(gate), up, their product

The output keeps a norm's tensors (twice with final_norm_twice) and its matrix' input, the embedding the 8 bytes of a
row number. A block that is computed again has gradients of c (F / t + H) beside these. Rotary tables are left out. To
the byte what torch.autograd.graph.saved_tensors_hooks counts on a CPU.
"""

from nt_dist.config.family import LayerActivations
from nt_dist.config.settings import Config
from nt_dist.llama.weights import padded_vocab_size

_TOKEN_BYTES = 8  # int64


def activations(config: Config, layer: str) -> LayerActivations:
    """Return what ``layer`` holds and exchanges.

    The tensor ranks add up a state after the embedding, twice forward and twice backward in each block (once more where
    it is computed again) and backward before the output.
    """
    model, element, tensor = config.model, config.element_bytes, config.parallel.tensor
    state = element * model.hidden_size
    if layer == "embedding":
        return LayerActivations(_TOKEN_BYTES, state, inner=0, all_reduced=state)
    if layer == "output":
        logits = element * padded_vocab_size(config) // tensor
        inner = state * (2 if config.trails.final_norm_twice else 1)
        return LayerActivations(state, logits, inner, all_reduced=state)
    keys = model.key_value_heads * model.head_size
    attention = element * (2 * model.hidden_size + 2 * keys) + 4 * model.num_attention_heads
    inner = 3 * state + (attention + 4 * element * model.ffn_size) // tensor
    if not config.train.activation_checkpointing:
        return LayerActivations(state, state, inner, all_reduced=4 * state)
    recomputed = state + element * model.ffn_size // tensor
    return LayerActivations(state, state, inner, all_reduced=5 * state, recomputed=recomputed)
