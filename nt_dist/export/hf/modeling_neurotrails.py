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
from transformers import Cache, DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.versions import require_version

from .sparse_neurotrails import check_dense, load_sparse

require_version("transformers>=4.57", "A NeuroTrails ensemble has been tried with no older one.")
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
_ONLY = {"tie_word_embeddings": False, "hidden_act": "silu", "sliding_window": None, "rope_scaling": None}


class NeuroTrailsConfig(PretrainedConfig):
    """What a NeuroTrailsForCausalLM is built from: the settings above, which mean what they mean for a LLaMA.

    ``combine`` says what ``logits`` are: "prob", the log of the mean of the trails' probabilities; "logit", the mean of
    their logits; or one trail's number, from 1.
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
class NeuroTrailsOutput(CausalLMOutputWithPast):
    """What a forward pass gives; None for what was not asked for.

    ``loss`` is of the logits; ``logits`` are the ensemble's, [B, S, V], log-probabilities with combine = "prob";
    ``cache`` (earlier versions of transformers: ``past_key_values``) has keys and values of all tokens so far.
    """

    trail_logits: torch.Tensor | None = None  # each trail's own, [T, B, S, V]


_CACHE = next(name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__)


def rotary_tables(config: NeuroTrailsConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, fp32 [B or 1, 1, S, head size], of positions [B or 1, S]."""
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
        self.number, self.head_dim, self.config = number, config.head_dim, config
        width, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, tables, seen: torch.Tensor | None, cache, places) -> torch.Tensor:
        """Attend from x [B, S, H] to the tokens that ``seen`` shows; see :func:`seen_tokens`.

        ``places`` [S] are those of x in the cache, which transformers up to 5.0 asks for.
        """
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, tables), rotate(key, tables)
        if cache is not None:
            key, value = cache.update(key, value, self.number, {"cache_position": places})
        causal = seen is None and bool(query.shape[2] == key.shape[2])  # symbols under torch.export
        if self.config._attn_implementation == "eager":
            mixed = attend(query, key, value, seen, causal)
        else:
            grouped = query.shape[1] != key.shape[1]
            mixed = F.scaled_dot_product_attention(query, key, value, seen, is_causal=causal, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, causal: bool):
    """Attention [B, heads, S, size] step by step, for attn_implementation = "eager"; see :func:`seen_tokens`."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


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
        """Return logits [B, kept, V] of x [B, S, H]; for ``kept`` see :func:`places`."""
        for block in self.blocks:
            x = block(x, *shared)
        x = self.norm(places(x, kept))
        return self.lm_head(self.norm(x) if self.final_norm_twice else x)


class NeuroTrailsForCausalLM(PreTrainedModel, GenerationMixin):
    """Embedding, trunk, trails; predicts what the trails together predict."""

    config_class = NeuroTrailsConfig
    _supports_sdpa = True
    accepts_loss_kwargs = True  # num_items_in_batch, for transformers' Trainer
    _no_split_modules = ("Block",)

    def __init__(self, config: NeuroTrailsConfig):
        super().__init__(config)
        for name, only in _ONLY.items():
            if (value := getattr(config, name, only)) not in (None, only):
                raise ValueError(f"{name} = {value!r} must be {only!r}: an ensemble has nothing else")
        num_tables = config.num_trails if config.fork_at_embedding else 1
        tables = (nn.Embedding(config.vocab_size, config.hidden_size) for _ in range(num_tables))
        self.embed_tokens = nn.ModuleList(tables)
        self.trunk = nn.ModuleList(Block(config, number) for number in range(config.trunk_layers))
        firsts = [config.trunk_layers + trail * config.trail_layers for trail in range(config.num_trails)]
        self.trails = nn.ModuleList(Trail(config, first) for first in firsts)
        self.post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # each pass reads the config, where transformers looks for words in this file

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
    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding; NotImplementedError where each trail has its own."""
        if len(self.embed_tokens) > 1:
            raise NotImplementedError("each trail has an embedding of its own: there is no single one")
        return self.embed_tokens[0]

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding; NotImplementedError as above."""
        self.get_input_embeddings()
        self.embed_tokens[0] = value

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize every embedding and output matrix; return the (first) embedding; see PreTrainedModel's."""
        check_dense(self)
        needs_grad = self.embed_tokens[0].weight.requires_grad
        tables = [
            self._get_resized_embeddings(table, new_num_tokens, pad_to_multiple_of, mean_resizing)
            for table in self.embed_tokens
        ]
        size = self.config.vocab_size = tables[0].num_embeddings
        heads = [self._get_resized_lm_head(each.lm_head, size, mean_resizing=mean_resizing) for each in self.trails]
        for number, table in enumerate(tables):
            self.embed_tokens[number] = table.requires_grad_(needs_grad)
        for trail, head in zip(self.trails, heads, strict=True):
            trail.lm_head = head.requires_grad_(needs_grad)
        return self.embed_tokens[0]

    def prepare_inputs_for_generation(self, *args, inputs_embeds=None, **kwargs):
        """Return what generate() gives a pass, without what versions up to 5.0 add and later ones warn of.

        The cache goes by its older name: PEFT finds it under no other, and would put a prompt before every token.
        """
        inputs = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)
        inputs.pop("cache_position", None)  # the cache's length says it
        inputs["past_key_values"] = inputs.pop("cache", inputs.get("past_key_values"))
        return inputs

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
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
        inputs_embeds: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ):
        """Predict the token after each of ``input_ids``.

        Args:
            input_ids: [B, S], the tokens after those in the cache.
            attention_mask: [B, tokens so far]; 0 for padding. Or [B, 1, S, L] as scaled_dot_product_attention takes it.
            position_ids: [B or 1, S]; None: counted from the cache's length.
            cache: Keys and values of the tokens before; earlier versions of transformers call it ``past_key_values``.
            labels: [B, S], as input_ids; -100 counts for nothing.
            inputs_embeds: [B, S, H] instead of ``input_ids``, where the trails share an embedding.
            num_items_in_batch: What the loss is the sum divided by; None: the labels that count.
            output_attentions, output_hidden_states: Must be false: each trail has its own.
            use_cache, combine: None: as the config says.
            logits_to_keep: See :func:`places`.
            output_trail_logits: Whether each trail's own logits are returned as well.
        """
        for name, asked in (("output_attentions", output_attentions), ("output_hidden_states", output_hidden_states)):
            if getattr(self.config, name, False) if asked is None else asked:
                raise ValueError(f"{name} must be false: an ensemble has them by trail, and gives none")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("logits_to_keep must be 0 where labels are given: a loss is of all places")
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        if not isinstance(cache, Cache | None):
            raise ValueError(f"cache must be a Cache of transformers, not a {type(cache).__name__}")
        hidden = self._embedded(input_ids, inputs_embeds)
        count, device = hidden[0].shape[1], hidden[0].device
        start = 0 if cache is None else int(cache.get_seq_length())
        length = cache.layers[0].max_cache_len if isinstance(cache, StaticCache) else start + count
        new = torch.arange(start, start + count, device=device)
        position_ids = new[None] if position_ids is None else position_ids
        if attention_mask is not None and attention_mask.dim() == 4:
            seen = whole_mask(attention_mask, hidden[0].dtype)
        else:
            seen = seen_tokens(start, count, attention_mask, device, length)
        shared = (rotary_tables(self.config, position_ids), seen, cache, new)
        for block in self.trunk:
            hidden = [block(each, *shared) for each in hidden]
        hidden = hidden if len(hidden) == len(self.trails) else hidden * len(self.trails)
        logits = [trail(each, logits_to_keep, *shared) for trail, each in zip(self.trails, hidden, strict=True)]
        logits = torch.stack([each.to(logits[0].device) for each in logits])  # a device map may part the trails
        combined = combine_trails(logits, self.config.combine if combine is None else combine)
        loss = None
        if labels is not None:
            loss = mean_loss(combined[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), num_items_in_batch)
        trail_logits = logits if output_trail_logits else None
        output = NeuroTrailsOutput(loss=loss, logits=combined, trail_logits=trail_logits, **{_CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _embedded(self, ids: torch.Tensor | None, embeddings: torch.Tensor | None) -> list[torch.Tensor]:
        """Return the first hidden state, [B, S, H], by embedding."""
        if embeddings is None:
            return [table(ids) for table in self.embed_tokens]
        if len(self.embed_tokens) > 1:
            raise ValueError("inputs_embeds cannot be used: each trail has an embedding of its own")
        return [embeddings]


def places(x: torch.Tensor, kept: int | torch.Tensor) -> torch.Tensor:
    """Return x [B, S, H] at the last so many places; at all for 0; or at those of an index.

    The index is of all sequences, [kept]; of each, [B, kept]; or boolean, [B, S], for [places that are true, H].
    """
    if isinstance(kept, int):
        return x[:, -kept:]
    kept = kept.to(x.device)
    if kept.dim() == 1:
        return x[:, kept]
    return x[kept] if kept.dtype == torch.bool else x.take_along_dim(kept[..., None], 1)


def mean_loss(logits: torch.Tensor, labels: torch.Tensor, num_items: int | torch.Tensor | None) -> torch.Tensor:
    """Return the cross-entropy of logits [N, V] over those of labels [N] that are not -100.

    ``num_items`` is what the sum is divided by, for a batch that is cut in parts; None: their own number.
    """
    labels = labels.to(logits.device)
    if num_items is None:
        return F.cross_entropy(logits, labels, ignore_index=-100)
    items = num_items.to(logits.device) if isinstance(num_items, torch.Tensor) else num_items
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / items


def combine_trails(logits: torch.Tensor, how: str | int) -> torch.Tensor:
    """Return the ensemble's logits [B, S, V] of the trails' [T, B, S, V]; see NeuroTrailsConfig.combine."""
    if how == "prob":
        return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))
    if how == "logit":
        return logits.float().mean(0)
    if isinstance(how, int) and 1 <= how <= len(logits):
        return logits[how - 1].float()
    raise ValueError(f"combine = {how!r} must be 'prob', 'logit' or a trail's number from 1 to {len(logits)}")


def whole_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask [B, 1, S, L] that says what each token sees: true for it, or added to the scores."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attention_mask of four dimensions must be boolean or added to scores, not {mask.dtype}")
    return mask if mask.dtype == torch.bool else mask.to(dtype)


def seen_tokens(
    start: int, count: int, real: torch.Tensor | None, device: torch.device, length: int
) -> torch.Tensor | None:
    """Return which of ``length`` places each of ``count`` new tokens after ``start`` sees, bool [B or 1, 1, S, L].

    None: all up to itself. ``real`` [B, tokens so far] is 0 for padding. A static cache has places behind the new ones.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # for whatever is given later, padding or not
    padded = real is not None and (traced or not bool(real.all()))
    if not padded and length == start + count and (start == 0 or count == 1):
        return None
    at = torch.arange(length, device=device)
    new = at[start : start + count, None]
    seen = (at <= new)[None]  # [1, S, L]
    if padded:  # a padded token sees itself: a softmax over nothing would be no number
        real = F.pad(real.to(device).bool(), (0, length - real.shape[1]))
        seen = (seen & real[:, None]) | (at == new)
    return seen[:, None]
