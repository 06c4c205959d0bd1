"""Token cross-entropies of the trails. T trails, B sequences, S tokens, V pieces."""

import torch
import torch.nn.functional as F


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihoods in nats, fp32 [T, B, S], of targets [B, S] under logits [T, B, S, V]."""
    each = [F.cross_entropy(trail.flatten(0, 1).float(), targets.flatten(), reduction="none") for trail in logits]
    return torch.stack(each).unflatten(1, targets.shape)
