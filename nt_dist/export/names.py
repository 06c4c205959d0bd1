"""What the weights of this package are called in other programs' checkpoints."""

from nt_dist.config import Config

IN_BLOCK = {
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
"""A block's weights in transformers' LLaMA, which all the formats here share."""


def _block(name: str) -> tuple[int, str] | None:
    """Take "blocks.<number>.<rest>" apart; the rest as others call it."""
    if not name.startswith("blocks."):
        return None
    _, number, rest = name.split(".", 2)
    return int(number), IN_BLOCK[rest]


def llama_name(name: str) -> str:
    """Return the name of a weight in transformers' LlamaForCausalLM, of one trail or of a dense model."""
    if block := _block(name):
        return f"model.layers.{block[0]}.{block[1]}.weight"
    return {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "output": "lm_head.weight"}[name]


def ensemble_name(config: Config, name: str, trail: int) -> str:
    """Return the name of a weight in our NeuroTrailsForCausalLM (hf/); ``trail`` is 0 for the trunk's."""
    if block := _block(name):
        number, rest = block
        behind = number - config.trunk_layers
        place = f"trunk.{number}" if behind < 0 else f"trails.{trail}.blocks.{behind}"
        return f"{place}.{rest}.weight"
    if name == "embedding":
        return f"embed_tokens.{trail}.weight"
    return {"norm": f"trails.{trail}.norm.weight", "output": f"trails.{trail}.lm_head.weight"}[name]


def paper_name(config: Config, name: str, trail: int) -> str:
    """Return the name of a weight in the public checkpoints of the paper's code (arXiv 2505.17909).

    There the trunk is ``backbone_model``, a trail ``head_model_<number>`` with its own blocks counted from 0.
    """
    if block := _block(name):
        number, rest = block
        behind = number - config.trunk_layers
        place = f"backbone_model.model.layers.{number}" if behind < 0 else f"head_model_{trail}.model.layers.{behind}"
        return f"{place}.{rest}.weight"
    if name == "embedding":
        return "backbone_model.model.embed_tokens.weight"
    return {"norm": f"head_model_{trail}.model.norm.weight", "output": f"head_model_{trail}.lm_head.weight"}[name]
