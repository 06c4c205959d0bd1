"""What weights and sizes of this package's LLaMA are called elsewhere: one table, which exports and imports read.

nt_dist/export/hf/modeling_neurotrails.py, which may import nothing of this package, has ENSEMBLE's as attributes.
"""

from collections.abc import Iterator
from typing import NamedTuple

from nt_dist.config.family import Twin
from nt_dist.config.settings import Config

_SIZES = {
    "hidden_size": "hidden_size",
    "ffn_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
_IN_BLOCK = {
    "attention.norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def shared_settings(config: Config) -> dict[str, tuple[str, int | float]]:
    """Return what ``[model]`` shares with transformers' config.json: by our name, theirs and the value."""
    values = vars(config.model) | {"num_kv_heads": config.model.key_value_heads}
    return {ours: (theirs, values[ours]) for ours, theirs in _SIZES.items()}


class Layout(NamedTuple):
    """Where a format keeps weights: patterns of a trail's number, a block's number and that counted from the fork."""

    embedding: str
    trunk: str
    trail: str
    norm: str
    output: str

    def key(self, config: Config, name: str, trail: int = 0) -> str:
        """Return the format's name of a weight; ``trail`` matters for those of the trails."""
        pattern, block, rest = name, 0, ""
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            block, rest = int(number), f".{_IN_BLOCK[rest]}"
            pattern = "trail" if block >= config.trunk_layers else "trunk"
        place = getattr(self, pattern).format(trail=trail, block=block, behind=block - config.trunk_layers)
        return f"{place}{rest}.weight"


LLAMA = Layout("model.embed_tokens", "model.layers.{block}", "model.layers.{block}", "model.norm", "lm_head")
"""transformers' LlamaForCausalLM: a dense model, or the trunk and one trail."""
ENSEMBLE = Layout(
    embedding="embed_tokens.{trail}",
    trunk="trunk.{block}",
    trail="trails.{trail}.blocks.{behind}",
    norm="trails.{trail}.norm",
    output="trails.{trail}.lm_head",
)
"""Our NeuroTrailsForCausalLM."""
PAPER = Layout(
    embedding="backbone_model.model.embed_tokens",
    trunk="backbone_model.model.layers.{block}",
    trail="head_model_{trail}.model.layers.{behind}",
    norm="head_model_{trail}.model.norm",
    output="head_model_{trail}.lm_head",
)
"""Public checkpoints of the paper's code (arXiv 2505.17909)."""


def twin(config: Config, one_trail: bool) -> Twin:
    settings = dict(shared_settings(config).values())
    settings |= {"max_position_embeddings": config.model.max_seq_len, "tie_word_embeddings": False}
    if one_trail:
        return Twin({"model_type": "llama", **settings}, LLAMA.key)
    settings |= {
        "num_trails": config.trails.count,
        "trunk_layers": config.trunk_layers,
        "trail_layers": config.model.num_layers - config.trunk_layers,
        "fork_at_embedding": config.trails.fork == "embedding",
        "final_norm_twice": config.trails.final_norm_twice,
        "auto_map": {
            "AutoConfig": "modeling_neurotrails.NeuroTrailsConfig",
            "AutoModelForCausalLM": "modeling_neurotrails.NeuroTrailsForCausalLM",
        },
    }
    return Twin(settings, ENSEMBLE.key)


def trail_problems(config: Config) -> Iterator[str]:
    if config.trails.final_norm_twice:
        yield (
            "trails.final_norm_twice = true: a LlamaForCausalLM has one final norm, so --trail cannot be exported; "
            "the ensemble can"
        )
