"""The layers of a LLaMA (Touvron et al., arXiv 2302.13971, §2.2), for one trail or many at once.

A hidden state is [T, B, S, H] (trails, batch, sequence, hidden); the trunk is the case T = 1. A cache has the keys and
values of the L tokens so far, so that the next one passes the model by itself.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.config.settings import Config
from nt_dist.model.chunks import ChunkedOutput
from nt_dist.model.functions import rms_norm, rotate
from nt_dist.model.layers import Linear, Lookup
from nt_dist.model.place import Place
from nt_dist.model.trails import MakeWeight, ResidualBlock, TrailsModel
from nt_dist.sparsity.weight import Weight

_FIRST_CAPACITY = 64  # tokens


class Rotary:
    """Rotary position embedding (Su et al., arXiv 2104.09864, §3.2), as two half-vectors rotated against each other.

    No module and no buffers: casting a module to bf16 would cast its tables too, and with them the positions.
    """

    def __init__(self, head_size: int, theta: float):
        self.head_size, self.theta = head_size, theta
        self._tables: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def tables(self, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines [length or more, head_size] in the type and on the device of ``like``."""
        if torch.compiler.is_compiling():  # a graph has them once for all blocks
            return self._make_tables(length, like, like.device)
        key = (like.dtype, like.device)
        if key not in self._tables or len(self._tables[key][0]) < length:
            # a text that is being written asks for one position more each time
            self._tables[key] = self._make_tables(length + length // 2, like, torch.device("cpu"))
        return self._tables[key]

    def _make_tables(self, length: int, like: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        exponent = torch.arange(0, self.head_size, 2, dtype=torch.float32, device=device) / self.head_size
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / self.theta**exponent)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(like), angles.sin().to(like)

    def __call__(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Rotate x [..., sequence, head_size], whose first position is ``start``."""
        end = start + x.shape[-2]
        cosines, sines = (table[start:end] for table in self.tables(end, x))
        return rotate(x, cosines, sines)


class Norm(nn.Module):
    """RMSNorm with one scale a trail."""

    def __init__(self, weight: Weight, eps: float):
        super().__init__()
        self.scale, self.eps = weight, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x [T, B, S, H]."""
        return self.scale(lambda scale, x: rms_norm(x, scale.dense()[:, None, None, :], self.eps), x)


class KeyValues:
    """Of one block's attention."""

    def __init__(self):
        self.length = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Add the keys and values of S new tokens [T*B, heads, S, head size]; return those of all [T*B, heads, L, ...].

        With them, which of all each new token sees: bool [S, L], or None where causal order alone says it (S = L), or
        all are seen (S = 1).
        """
        start, count = self.length, keys.shape[2]
        self.length += count
        if self._keys is None or self.length > self._keys.shape[2]:
            self._grow(keys, start)
        self._keys[:, :, start : self.length] = keys
        self._values[:, :, start : self.length] = values
        at = torch.arange(self.length, device=keys.device)
        seen = None if count in (1, self.length) else at <= at[start:, None]
        return self._keys[:, :, : self.length], self._values[:, :, : self.length], seen

    def _grow(self, like: torch.Tensor, filled: int) -> None:
        """Make room for twice as many tokens: so a token costs no copy of all before it."""
        old, capacity = (self._keys, self._values), max(_FIRST_CAPACITY, 2 * self.length)
        shape = (*like.shape[:2], capacity, like.shape[3])
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        if filled:
            self._keys[:, :, :filled], self._values[:, :, :filled] = (each[:, :, :filled] for each in old)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads (Ainslie et al., arXiv 2305.13245)."""

    def __init__(self, config: Config, prefix: str, make: MakeWeight, place: Place):
        super().__init__()
        self.place, self.head_size = place, config.model.head_size
        self.norm = Norm(make(f"{prefix}.norm"), config.model.norm_eps)
        self.query, self.key, self.value = (Linear(make(f"{prefix}.{each}")) for each in ("query", "key", "value"))
        self.output = Linear(make(f"{prefix}.output"))
        self.rotary = Rotary(config.model.head_size, config.model.rope_theta)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_size)).flatten(0, 1).transpose(1, 2)  # [T*B, heads, S, head_size]

    def forward(self, x: torch.Tensor, past: KeyValues | None = None) -> torch.Tensor:
        """Attend within x [T, B, S, H] and, where there is a past, to it; x is added to it."""
        query, key, value = map(self._heads, self.place.columns(self.norm(x), self.query, self.key, self.value))
        start = 0 if past is None else past.length
        query, key, seen = self.rotary(query, start), self.rotary(key, start), None
        if past is not None:
            key, value, seen = past.append(key, value)
        grouped = key.shape[1] != query.shape[1]
        causal = seen is None and query.shape[2] == key.shape[2]
        mixed = F.scaled_dot_product_attention(query, key, value, seen, is_causal=causal, enable_gqa=grouped)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2])
        return self.place.out_of_rows(self.output(mixed))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: Config, prefix: str, make: MakeWeight, place: Place):
        super().__init__()
        self.place = place
        self.norm = Norm(make(f"{prefix}.norm"), config.model.norm_eps)
        self.gate, self.up, self.down = (Linear(make(f"{prefix}.{each}")) for each in ("gate", "up", "down"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform x [T, B, S, H]."""
        gate, up = self.place.columns(self.norm(x), self.gate, self.up)
        return self.place.out_of_rows(self.down(F.silu(gate) * up))


class Block(ResidualBlock):
    """One transformer block, of the trunk or of all trails held here."""

    def __init__(self, config: Config, number: int, make: MakeWeight, place: Place):
        super().__init__()
        self.attention = Attention(config, f"blocks.{number}.attention", make, place)
        self.mlp = FeedForward(config, f"blocks.{number}.mlp", make, place)

    def forward(self, x: torch.Tensor, past: KeyValues | None = None) -> torch.Tensor:
        """Transform x [T, B, S, H], the tokens after ``past``."""
        x = x + self.attention(x, past)
        return x + self.mlp(x)


class Embedding(nn.Module):
    """Token embedding."""

    def __init__(self, make: MakeWeight, place: Place):
        super().__init__()
        self.table, self.place = Lookup(make("embedding")), place

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up tokens [B, S] → [T, B, S, H]; of the trunk's share of them, where the table is the trunk's."""
        if not self.table.weight.spec.in_trail:
            tokens = self.place.into_trunk(tokens)  # [b, S]
        return self.place.out_of_rows(self.table(tokens))


class Output(ChunkedOutput):
    """Each trail's final norm and output matrix; V are the padded pieces held here, and padding's logits are -inf."""

    def __init__(self, config: Config, make: MakeWeight, place: Place):
        super().__init__()
        self.norm = Norm(make("norm"), config.model.norm_eps)
        self.matrix, self.place = Linear(make("output")), place
        self.times = 2 if config.trails.final_norm_twice else 1

    def state(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x [T, B, S, H]."""
        for _ in range(self.times):
            x = self.norm(x)
        return self.place.into_columns(x)

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask padding."""
        weight = self.matrix.weight
        real = weight.spec.valid - weight.shards.start * weight.spec.shard_length
        if real >= logits.shape[-1]:
            return logits
        padding = torch.arange(logits.shape[-1], device=logits.device) >= real
        return logits.masked_fill(padding, -torch.inf)


def layers(config: Config, make: MakeWeight, place: Place) -> dict[str, Callable[[], nn.Module]]:
    """Return one function per layer that makes it, by the layer's name."""
    numbers = range(config.model.num_layers)
    blocks = {f"blocks.{number}": partial(Block, config, number, make, place) for number in numbers}
    return {"embedding": partial(Embedding, make, place), **blocks, "output": partial(Output, config, make, place)}


class Cache(defaultdict[nn.Module, KeyValues]):
    """Of all blocks of a model, each made when it is first asked for."""

    def __init__(self):
        super().__init__(KeyValues)

    @property
    def length(self) -> int:
        """Tokens so far."""
        return max((each.length for each in self.values()), default=0)


def step(model: TrailsModel, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Return the trails' logits [T, B, S, V] for the tokens [B, S] after those in ``cache``, which they join."""
    x = tokens
    for layer in model:
        x = layer(x, cache[layer]) if isinstance(layer, ResidualBlock) else layer(x)
    return x
