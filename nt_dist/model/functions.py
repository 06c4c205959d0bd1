"""Operations of the layers with a backward pass of their own: fewer passes over memory, and less kept for backward.

T trails, N rows of a trail, H hidden size.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

# Elements worked on at once: on CPUs what stays in the caches; on GPUs, and in a graph, what keeps one busy.
AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}


def is_eager_cpu(device: torch.device) -> bool:
    """Whether operations run on a CPU one by one: what then goes by its caches would only break a graph apart."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def lots(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of ``count`` rows of ``width`` elements that are worked on at once."""
    rows = max(1, AT_ONCE["cpu" if is_eager_cpu(device) else "cuda"] // width)
    return (slice(start, start + rows) for start in range(0, count, rows))


def rms_norm(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / √(mean x² + eps) · scale (Zhang and Sennrich, arXiv 1910.07467, eq. 4), for scale [T, 1, ..., 1, H].

    Beside x [T, ..., H] nothing of its size is kept for backward.
    """
    return _RMSNorm.apply(x, scale, eps) if is_eager_cpu(x.device) else norm_by_torch(x, scale, eps)


class _RMSNorm(torch.autograd.Function):
    """In lots that stay in a CPU's caches."""

    @staticmethod
    def forward(ctx, x, scale, eps):
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        return norm_in_lots(x, scale, eps)

    @staticmethod
    def backward(ctx, gradient):
        return *gradients_in_lots(*ctx.saved_tensors, ctx.eps, gradient), None


def norm_by_torch(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Return :func:`rms_norm` by torch's, which on GPUs is one kernel a trail and keeps its input."""
    if len(scale) == 1:
        return F.rms_norm(x, x.shape[-1:], scale.flatten(), eps)
    of_trails = [F.rms_norm(each, each.shape[-1:], own.flatten(), eps) for each, own in zip(x, scale, strict=True)]
    return torch.stack(of_trails)


def norm_in_lots(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Return :func:`rms_norm`, some rows of all trails at a time."""
    rows, scale = x.flatten(1, -2), scale.flatten(1, -2)
    result = x.new_empty(rows.shape)
    for lot in lots(rows.shape[1], len(rows) * rows.shape[2], x.device):
        torch.mul(rows[:, lot], scale * _inverse_rms(rows[:, lot], eps), out=result[:, lot])
    return result.view(x.shape)


def gradients_in_lots(
    x: torch.Tensor, scale: torch.Tensor, eps: float, gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return those of x and scale, some rows of all trails at a time.

    With n = x / rms and g the gradient: that of scale is Σ g n, that of x is (g scale − n · mean(g scale n)) / rms.
    """
    rows, grad_rows, flat_scale = x.flatten(1, -2), gradient.flatten(1, -2), scale.flatten(1, -2)
    grad_x, grad_scale = x.new_empty(rows.shape), torch.zeros_like(flat_scale, dtype=torch.float32)
    to_mean = flat_scale.float().mT / rows.shape[2]
    for lot in lots(rows.shape[1], len(rows) * rows.shape[2], x.device):
        inverse = _inverse_rms(rows[:, lot], eps)
        normalized = rows[:, lot] * inverse
        product = grad_rows[:, lot] * normalized
        grad_scale += product.sum(1, keepdim=True)
        normalized *= (product @ to_mean) * inverse
        torch.sub(grad_rows[:, lot] * (flat_scale * inverse), normalized, out=grad_x[:, lot])
    return grad_x.view(x.shape), grad_scale.view(scale.shape).to(scale)


def _inverse_rms(rows: torch.Tensor, eps: float) -> torch.Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=dtype)
    return norms.square_().div_(rows.shape[-1]).add_(eps).rsqrt_()


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate the two halves of x [..., S, size] against each other; the tables [S, size] hold each angle twice."""
    return _Rotate.apply(x, cosines, sines)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cosines, sines):
        ctx.save_for_backward(cosines, sines)
        return _rotated(x, cosines, sines)

    @staticmethod
    def backward(ctx, gradient):
        cosines, sines = ctx.saved_tensors
        return _rotated(gradient, cosines, sines, back=True), None, None


def _rotated(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, back: bool = False) -> torch.Tensor:
    half, sign = x.shape[-1] // 2, -1 if back else 1
    result = x * cosines
    result[..., :half].addcmul_(x[..., half:], sines[..., :half], value=-sign)
    result[..., half:].addcmul_(x[..., :half], sines[..., half:], value=sign)
    return result
