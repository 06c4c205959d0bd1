"""Keys and values of the L tokens so far, of B sequences in T trails (1 in the trunk): the next passes by itself."""

import torch
from torch import nn

from nt_dist.model.trails import ResidualBlock, TrailsModel

_FIRST_CAPACITY = 64


class KeyValues:
    """Of one block's attention; ``padding`` [B] are tokens at the left of each sequence that nothing may see."""

    def __init__(self, padding: torch.Tensor | None = None):
        self.length = 0
        self._padding = padding
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Add the keys and values of S new tokens [T*B, heads, S, head size]; return those of all [T*B, heads, L, ...].

        With them, which of all each new token sees: bool, to be broadcast to [T*B, heads, S, L]; None where causal
        order alone says it (S = L), or all are seen (S = 1).
        """
        start, self.length = self.length, self.length + keys.shape[2]
        if self._keys is None or self.length > self._keys.shape[2]:
            self._grow(keys, start)
        self._keys[:, :, start : self.length] = keys
        self._values[:, :, start : self.length] = values
        seen = self._seen(start, keys.shape[0], keys.device)
        return self._keys[:, :, : self.length], self._values[:, :, : self.length], seen

    def _grow(self, like: torch.Tensor, filled: int) -> None:
        """Make room for twice as many tokens: so a token costs no copy of all before it."""
        old, capacity = (self._keys, self._values), max(_FIRST_CAPACITY, 2 * self.length)
        shape = (*like.shape[:2], capacity, like.shape[3])
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        if filled:
            self._keys[:, :, :filled], self._values[:, :, :filled] = (each[:, :, :filled] for each in old)

    def _seen(self, start: int, rows: int, device: torch.device) -> torch.Tensor | None:
        count = self.length - start
        if self._padding is None and (count == 1 or start == 0):
            return None
        at = torch.arange(self.length, device=device)
        seen = at <= at[start:, None]  # [S, L]
        if self._padding is None:
            return seen
        real = at >= self._padding.to(device)[:, None]  # [B, L]
        # a padded token sees itself: a softmax over nothing would be no number
        seen = (seen & real[:, None]) | (at == at[start:, None])  # [B, S, L]
        return seen.repeat(rows // len(self._padding), 1, 1)[:, None]


class Cache(dict[nn.Module, KeyValues]):
    """Of all blocks of a model, each made when it is first asked for; ``padding`` as :class:`KeyValues` has it."""

    def __init__(self, padding: torch.Tensor | None = None):
        super().__init__()
        self._padding = padding

    def __missing__(self, block: nn.Module) -> KeyValues:
        return self.setdefault(block, KeyValues(self._padding))

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
