"""What a model gets: a batch of (inputs, targets, weights)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from nt_dist.data.samples import Sample


class Batch(NamedTuple):
    """One micro-batch of B samples, of P positions each."""

    inputs: torch.Tensor  # what the model reads; of text, tokens, int64. [B, ...]
    targets: torch.Tensor  # the right class at each position; of text, the token that follows, int64. [B, P]
    weights: torch.Tensor  # 1 where the target is real, 0 on padding, float32. [B, P]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate(rows: Sequence[Sample]) -> Batch:
    """Put samples into one batch."""
    return Batch(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True)))
