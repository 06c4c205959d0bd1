"""The section ``[model]`` of a LLaMA, and the rules over its settings."""

from collections.abc import Iterator
from dataclasses import dataclass

from nt_dist.config.keys import POSITIVE, at_least, identity, nearest_numbers, reads
from nt_dist.config.settings import Config
from nt_dist.text import settings as text


@dataclass(frozen=True)
class Model:
    """The LLaMA that each trail is, from its embedding to its output matrix."""

    family: str = identity("llama", "Kind of network.")
    hidden_size: int = identity(128, "Width of the hidden states.", at_least(1))
    ffn_size: int = identity(352, "Width inside the SwiGLU of a block.", at_least(1))
    num_layers: int = identity(6, "Blocks from the embedding to one output, trunk and trail.", at_least(1))
    num_attention_heads: int = identity(4, "Attention heads of a block.", at_least(1))
    num_kv_heads: int = identity(0, "Key and value heads of a block; 0: as many as attention heads.", at_least(0))
    vocab_size: int = identity(2048, "Pieces of the tokenizer.", at_least(2))
    max_seq_len: int = identity(128, "Tokens of a sequence.", at_least(1))
    norm_eps: float = identity(1e-6, "Added to the mean square in RMSNorm.", POSITIVE)
    rope_theta: float = identity(10000.0, "Base of the rotary position embedding.", POSITIVE)

    @property
    def key_value_heads(self) -> int:
        """Key and value heads of a block, with the 0 of ``num_kv_heads`` resolved."""
        return self.num_kv_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@reads("model.hidden_size", "model.num_attention_heads")
def _heads_divide_hidden(config: Config) -> Iterator[str]:
    hidden, heads = config.model.hidden_size, config.model.num_attention_heads
    if hidden % heads:
        near = nearest_numbers(heads, lambda count: hidden % count == 0)
        yield f"model.num_attention_heads = {heads} must divide model.hidden_size = {hidden}; nearest: {near}"
    elif config.model.head_size % 2:
        yield (
            f"model.hidden_size / model.num_attention_heads = {config.model.head_size} must be even: "
            "the rotary embedding turns pairs"
        )


@reads("model.num_attention_heads", "model.num_kv_heads")
def _kv_heads_divide_heads(config: Config) -> Iterator[str]:
    heads, kv_heads = config.model.num_attention_heads, config.model.key_value_heads
    if heads % kv_heads:
        near = nearest_numbers(kv_heads, lambda count: heads % count == 0)
        yield f"model.num_kv_heads = {kv_heads} must divide model.num_attention_heads = {heads}; nearest: {near}"


@reads(
    "sparsity.topology_shards", "model.hidden_size", "model.ffn_size", "model.num_attention_heads", "model.num_kv_heads"
)
def _shards_divide_axes(config: Config) -> Iterator[str]:
    shards = config.sparsity.topology_shards
    axes = {"model.hidden_size": config.model.hidden_size, "model.ffn_size": config.model.ffn_size}
    if config.model.num_kv_heads:
        axes["model.num_kv_heads × head size"] = config.model.key_value_heads * config.model.head_size
    for axis, size in axes.items():
        if size % shards:
            near = nearest_numbers(size, lambda size: size % shards == 0)
            yield f"sparsity.topology_shards = {shards} must divide {axis} = {size}; nearest: {near}"


@reads("data.layout", "model.max_seq_len")
def _sequence_has_targets(config: Config) -> Iterator[str]:
    if config.data.layout == "rows" and config.model.max_seq_len < 2:
        yield "model.max_seq_len = 1 must be at least 2 with data.layout = 'rows': a row begins with BOS"


RECIPES = {
    "default": {  # measured: docs/results.md, "Levers of the recipe"
        "trails.joint": 12.0,
        "trails.joint_schedule": "linear",
        "train.lr_embedding": 20.0,
        "train.weight_decay_embedding": 0.05,  # of its rate: as much a step as of the others
        "sparsity.exempt": ["embedding", "output"],
        "sparsity.drop_fraction": 0.1,
        "sparsity.stop_fraction": 0.75,
    },
    "paper": {  # the code of arXiv 2505.17909 for language
        "trails.joint": 0.0,
        "trails.joint_schedule": "constant",
        "train.optimizer": "adamw",
        "train.objective": "sum",
        "train.lr_embedding": 1.0,
        "train.lr_output": 1.0,
        "train.lr_trunk": 1.0,
        "train.weight_decay_embedding": 1.0,
        "train.weight_decay_output": 1.0,
        "train.weight_decay_trunk": 1.0,
        "train.betas_embedding": [],
        "train.betas_output": [],
        "train.betas_trunk": [],
        "train.average_decay": 0.0,
        "train.mup_base_hidden": 0,
        "sparsity.distribution": "erk",
        "sparsity.exempt": [],
        "sparsity.drop": "soft_magnitude",
        "sparsity.temperature": 3.0,
        "sparsity.grow": "gradient",
        "sparsity.start_density": 0.0,
        "sparsity.drop_fraction": 0.5,
        "sparsity.drop_schedule": "cosine",
        "sparsity.stop_fraction": 1.0,
        "sparsity.new_moments": "zero",
    },
}
RULES = (*text.RULES, _heads_divide_hidden, _kv_heads_divide_heads, _shards_divide_axes, _sequence_has_targets)
