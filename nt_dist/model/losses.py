"""Token cross-entropies of the trails and of their mean. T trails, B sequences, S tokens, V classes held here."""

from collections.abc import Callable

import torch

from nt_dist.model.functions import lots

Join = Callable[[torch.Tensor], torch.Tensor]  # figures of the classes held here -> those of all


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, maximum: Join, total: Join, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the negative log-likelihoods in nats, fp32 [T, B, S], of logits [T, B, S, V] of any type.

    Targets are classes [B, S], counted from the first one held here; those outside must be held by others. ``maximum``
    and ``total`` join maxima [rows], and sums [2, rows] or with smoothing [4, rows], over all holders of classes. With
    ``smoothing`` s the target is a mixture of the right class, 1 - s, and of all real ones alike, s (label smoothing;
    Szegedy et al., arXiv 1512.00567, §7). Padded classes have logits of -inf.

    For backward the logits are kept as they are and nothing of their size beside them: their softmax is computed again,
    some rows at a time, where it becomes their gradient. Where all rows were worked on at once, outside of a graph,
    their exponentials are kept as well.
    """
    return _TokenLosses.apply(logits, targets, maximum, total, smoothing)


def objective(sums: torch.Tensor, joint: float | None) -> torch.Tensor:
    """Return what is minimised, given the trails' sums of token losses [T], after them the ensemble's if it counts.

    ``joint`` weighs that one; None: it is not among them.
    """
    return sums.sum() if joint is None else sums[:-1].sum() + joint * sums[-1]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, maximum, total, smoothing):
        rows, targets = logits.flatten(0, -2), targets.expand(logits.shape[:-1]).flatten()
        highest = maximum(rows.amax(-1).float())
        elsewhere = (targets < 0) | (targets >= rows.shape[-1])
        index = targets.masked_fill(elsewhere, 0)[:, None]
        sums = torch.stack([highest, (rows.gather(-1, index)[:, 0] - highest).masked_fill_(elsewhere, 0.0)])
        if smoothing:
            sums = torch.cat([sums, torch.empty_like(sums)])  # sum and number of the real classes' logits
        parts = list(lots(*rows.shape, rows.device))
        for some in parts:
            below = rows[some] - highest[some, None]
            if smoothing:
                real = below.isfinite()
                sums[2, some], sums[3, some] = below.where(real, 0.0).sum(-1), real.sum(-1).float()
            sums[0, some] = below.exp_().sum(-1)
        total_exp, target, *rest = total(sums)
        normalizer, share = total_exp.log(), None
        if smoothing:
            total_logit, count = rest
            target, share = (1 - smoothing) * target + smoothing * total_logit / count, smoothing / count
        keeps = len(parts) == 1 and not torch.compiler.is_compiling()
        times = total_exp if keeps else torch.ones_like(total_exp)  # what backward begins with, over the softmax
        ctx.smoothing = smoothing
        kept = logits, highest + normalizer, index, elsewhere, share, times, below if keeps else None
        ctx.save_for_backward(*kept)
        return (normalizer - target).view(logits.shape[:-1])

    @staticmethod
    def backward(ctx, gradient):
        logits, normalizer, index, elsewhere, share, times, exponentials = ctx.saved_tensors
        rows, times = logits.flatten(0, -2), times[:, None]
        gradient, grad_rows = gradient.reshape(-1, 1) / times, torch.empty_like(rows)
        less = times.masked_fill(elsewhere[:, None], 0.0) * (ctx.smoothing - 1)
        for some in lots(*rows.shape, rows.device):
            found = (rows[some] - normalizer[some, None]).exp_() if exponentials is None else exponentials
            if ctx.smoothing:
                found -= (share[some, None] * times[some]) * rows[some].isfinite()
            torch.mul(found.scatter_add_(1, index[some], less[some]), gradient[some], out=grad_rows[some])
        return grad_rows.view(logits.shape), None, None, None, None
