"""A NeuroTrails ensemble for transformers (arXiv 2505.17909): LLaMA blocks, a trunk that forks into trails.

It needs torch and transformers only. Shapes: B sequences, S tokens, H width, V pieces, T trails. What all blocks of a
pass share are its rotary tables, which tokens are seen, and the cache.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .sparse_neurotrails import load_sparse

_DEFAULTS = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,  # tokens of the sequences that it was trained on
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_trails": 3,
    "trunk_layers": 2,
    "trail_layers": 4,
    "fork_at_embedding": False,  # whether each trail has an embedding of its own (a full ensemble)
    "final_norm_twice": False,  # whether each trail's final norm runs twice
    "combine": "prob",
    "initializer_range": 0.02,
    "use_cache": True,
}


class NeuroTrailsConfig(PretrainedConfig):
    """What a NeuroTrailsForCausalLM is built from: the settings above, which mean what they mean for a LLaMA.

    ``combine`` says what ``logits`` are: "prob", the log of the mean of the trails' probabilities; "logit", the mean of
    their logits; or one trail's number, from 0.
    """

    model_type = "neurotrails"

    def __init__(self, **settings):
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.pop(name, default))
        # a key-value cache has one layer for each of them, the trunk's once
        computed = {"num_hidden_layers": self.trunk_layers + self.num_trails * self.trail_layers}
        computed["head_dim"] = self.hidden_size // self.num_attention_heads
        super().__init__(**{"tie_word_embeddings": False, **settings, **computed})


@dataclass
class NeuroTrailsOutput(ModelOutput):
    """What a forward pass gives; None for what was not asked for."""

    loss: torch.Tensor | None = None  # mean token cross-entropy of the logits
    logits: torch.Tensor | None = None  # the ensemble's, [B, S, V]; log-probabilities with combine = "prob"
    cache: object | None = None  # keys and values of all tokens so far
    trail_logits: torch.Tensor | None = None  # each trail's own, [T, B, S, V]


def rotary_tables(config: NeuroTrailsConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, fp32 [B or 1, 1, S, head size], of positions [B or 1, S].

    Nothing of it is kept in the module: what is no parameter is lost, or cast, on a model's way through transformers.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    angles = positions[..., None].float() / config.rope_theta**exponent
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply the rotary embedding (Su et al., arXiv 2104.09864), halves against each other, to x [B, heads, S, size]."""
    cosines, sines = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat([-second, first], -1) * sines


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values; ``number`` is its layer in the cache."""

    def __init__(self, config: NeuroTrailsConfig, number: int):
        super().__init__()
        self.number, self.head_dim = number, config.head_dim
        width, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, tables, seen: torch.Tensor | None, cache) -> torch.Tensor:
        """Attend from x [B, S, H] to the tokens that ``seen`` shows; see :func:`seen_tokens`."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, tables), rotate(key, tables)
        if cache is not None:
            key, value = cache.update(key, value, self.number)
        causal = seen is None and query.shape[2] == key.shape[2]
        grouped = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(query, key, value, seen, is_causal=causal, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: NeuroTrailsConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform x [B, S, H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One LLaMA block, of the trunk or of one trail."""

    def __init__(self, config: NeuroTrailsConfig, number: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, number)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, *shared) -> torch.Tensor:
        """Transform x [B, S, H]."""
        x = x + self.self_attn(self.input_layernorm(x), *shared)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trail(nn.Module):
    """One member: blocks, final norm and output matrix; ``number`` is the cache's layer of its first block."""

    def __init__(self, config: NeuroTrailsConfig, number: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, number + each) for each in range(config.trail_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.final_norm_twice = config.final_norm_twice

    def forward(self, x: torch.Tensor, kept, *shared) -> torch.Tensor:
        """Return logits [B, kept, V] of x [B, S, H] at the places ``kept``."""
        for block in self.blocks:
            x = block(x, *shared)
        x = self.norm(x[:, kept])
        return self.lm_head(self.norm(x) if self.final_norm_twice else x)


class NeuroTrailsForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, trunk, trails; predicts what the trails together predict."""

    config_class = NeuroTrailsConfig
    _supports_sdpa = True
    _no_split_modules = ("Block",)

    def __init__(self, config: NeuroTrailsConfig):
        super().__init__(config)
        num_tables = config.num_trails if config.fork_at_embedding else 1
        tables = (nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(num_tables))
        self.embed_tokens = nn.ModuleList(tables)
        self.trunk = nn.ModuleList(Block(config, number) for number in range(config.trunk_layers))
        firsts = [config.trunk_layers + trail * config.trail_layers for trail in range(config.num_trails)]
        self.trails = nn.ModuleList(Trail(config, first) for first in firsts)
        self.post_init()

    @classmethod
    def from_sparse(cls, folder: str | Path, kernel: str = "fastest", tokens: int = 1) -> "NeuroTrailsForCausalLM":
        """Load an ensemble on the CPU, for inference, from a folder with sparse.safetensors and config.json.

        ``kernel`` and ``tokens`` say how matrices are held; see sparse_neurotrails.load_sparse.
        """
        with torch.device("meta"):
            model = cls(NeuroTrailsConfig.from_pretrained(folder, local_files_only=True))
        load_sparse(model, Path(folder), kernel, tokens)
        return model.eval()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache=None,
        past_key_values=None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        combine: str | int | None = None,
        output_trail_logits: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ):
        """Predict the token after each of ``input_ids``.

        Args:
            input_ids: [B, S], the tokens after those in the cache.
            attention_mask: [B, tokens so far]; 0 for padding.
            position_ids: [B or 1, S]; None: counted from the cache's length.
            cache: Keys and values of the tokens before (a DynamicCache); earlier versions of transformers call it
                ``past_key_values``.
            labels: [B, S], as input_ids; -100 counts for nothing.
            use_cache, combine: None: as the config says.
            logits_to_keep: Only the last so many places, or those of an index; 0: all.
            output_trail_logits: Whether each trail's own logits are returned as well.
        """
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        start = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        seen = seen_tokens(start, input_ids.shape[1], attention_mask, input_ids.device)
        shared = (rotary_tables(self.config, position_ids), seen, cache)
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = [table(input_ids) for table in self.embed_tokens]
        for block in self.trunk:
            hidden = [block(each, *shared) for each in hidden]
        hidden = hidden if len(hidden) == len(self.trails) else hidden * len(self.trails)
        logits = torch.stack([trail(each, kept, *shared) for trail, each in zip(self.trails, hidden, strict=True)])
        combined = combine_trails(logits, self.config.combine if combine is None else combine)
        loss = None
        if labels is not None:
            flat = combined[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(flat, labels[:, 1:].flatten().to(flat.device), ignore_index=-100)
        output = NeuroTrailsOutput(loss, combined, cache, logits if output_trail_logits else None)
        return output if return_dict is not False else output.to_tuple()


def combine_trails(logits: torch.Tensor, how: str | int) -> torch.Tensor:
    """Return the ensemble's logits [B, S, V] of the trails' [T, B, S, V]; see NeuroTrailsConfig.combine."""
    if how == "prob":
        return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))
    if how == "logit":
        return logits.float().mean(0)
    if isinstance(how, int) and 0 <= how < len(logits):
        return logits[how].float()
    raise ValueError(f"combine = {how!r} must be 'prob', 'logit' or a trail's number from 0 to {len(logits) - 1}")


def seen_tokens(start: int, count: int, real: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """Return which tokens each of ``count`` new ones after ``start`` sees: bool [B or 1, 1, S, L], or None.

    None: all up to itself, and nothing else need be said. ``real`` [B, L] is 0 for padding.
    """
    padded = real is not None and not bool(real.all())
    if not padded and (count == 1 or start == 0):
        return None
    at = torch.arange(start + count, device=device)
    seen = (at <= at[start:, None])[None]  # [1, S, L]
    if padded:  # a padded token sees itself: a softmax over nothing would be no number
        seen = (seen & real.bool()[:, None]) | (at == at[start:, None])
    return seen[:, None]
