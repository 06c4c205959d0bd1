"""Keys and values of the L tokens so far, of B sequences in T trails (1 in the trunk): the next passes by itself."""

from collections import defaultdict

import torch
from torch import nn

from nt_dist.model.trails import ResidualBlock, TrailsModel

_FIRST_CAPACITY = 64


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
