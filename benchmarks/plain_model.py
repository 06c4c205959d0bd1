"""The same model of torch.nn.Linear, trained in a plain PyTorch loop: what the trainer is measured against.

Trunk, fork and trails as an ordinary user would write them: one module a trail, called one after the other; LLaMA
blocks (RMSNorm, rotary embedding, grouped-query attention through scaled_dot_product_attention, SwiGLU). Nothing here
is shared with nt_dist/model, so that neither can be slow or wrong for the other's reasons; a test compares logits.

Shapes: B sequences, S positions, H hidden size, V padded vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.config import Config
from nt_dist.llama.weights import padded_vocab_size


class PlainBlock(nn.Module):
    """One LLaMA block: [B, S, H] -> [B, S, H]."""

    def __init__(self, config: Config):
        super().__init__()
        model = config.model
        self.head_size = config.model.head_size
        keys = config.model.key_value_heads * config.model.head_size
        self.attention_norm = nn.RMSNorm(model.hidden_size, eps=model.norm_eps)
        self.query = nn.Linear(model.hidden_size, model.hidden_size, bias=False)
        self.key = nn.Linear(model.hidden_size, keys, bias=False)
        self.value = nn.Linear(model.hidden_size, keys, bias=False)
        self.output = nn.Linear(model.hidden_size, model.hidden_size, bias=False)
        self.mlp_norm = nn.RMSNorm(model.hidden_size, eps=model.norm_eps)
        self.gate = nn.Linear(model.hidden_size, model.ffn_size, bias=False)
        self.up = nn.Linear(model.hidden_size, model.ffn_size, bias=False)
        self.down = nn.Linear(model.ffn_size, model.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attention, then the MLP, each with its norm before and its input added after."""
        normed = self.attention_norm(hidden)
        query, key, value = (
            project(normed).unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # [B, heads, S, head size]
            for project in (self.query, self.key, self.value)
        )
        query, key = rotate(query, rotary), rotate(key, rotary)
        grouped = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        hidden = hidden + self.output(mixed.transpose(1, 2).flatten(-2))
        normed = self.mlp_norm(hidden)
        return hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))


class PlainTrail(nn.Module):
    """The blocks, final norm and output matrix of one trail: [B, S, H] -> logits [B, S, V]."""

    def __init__(self, config: Config):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.model.num_layers - config.trunk_layers))
        self.norm = nn.RMSNorm(config.model.hidden_size, eps=config.model.norm_eps)
        self.norms = 2 if config.trails.final_norm_twice else 1
        self.output = nn.Linear(config.model.hidden_size, padded_vocab_size(config), bias=False)

    def forward(self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Logits of this trail."""
        for block in self.blocks:
            hidden = block(hidden, rotary)
        for _ in range(self.norms):
            hidden = self.norm(hidden)
        return self.output(hidden)


class PlainModel(nn.Module):
    """Embedding, trunk and trails, all dense: tokens [B, S] -> logits, a list of T tensors [B, S, V].

    Args:
        config: Sizes of [model] and [trails]; [sparsity] matters only for the padding of the vocabulary.
    """

    def __init__(self, config: Config):
        super().__init__()
        width, rows = config.model.hidden_size, padded_vocab_size(config)
        num_tables = config.trails.count if config.trails.fork == "embedding" else 1
        self.embeddings = nn.ModuleList(nn.Embedding(rows, width) for _ in range(num_tables))
        self.trunk = nn.ModuleList(PlainBlock(config) for _ in range(config.trunk_layers))
        self.trails = nn.ModuleList(PlainTrail(config) for _ in range(config.trails.count))
        self.rotary = rotary_tables(config.model.max_seq_len, config.model.head_size, config.model.rope_theta)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each trail."""
        rotary = tuple(table[: tokens.shape[1]].to(tokens.device) for table in self.rotary)
        hidden = [embedding(tokens) for embedding in self.embeddings]
        for block in self.trunk:
            hidden = [block(each, rotary) for each in hidden]
        if len(hidden) < len(self.trails):
            hidden = hidden * len(self.trails)
        return [trail(each, rotary) for trail, each in zip(self.trails, hidden, strict=True)]


def rotary_tables(length: int, size: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [length, size] of the rotary embedding (Su et al., arXiv 2104.09864), halves rotated."""
    angles = torch.arange(length)[:, None] * theta ** (-torch.arange(0, size, 2) / size)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Applies the rotary embedding to [B, heads, S, head size]; the tables are cast to the type of x."""
    cosine, sine = (table.to(x.dtype) for table in rotary)
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine
