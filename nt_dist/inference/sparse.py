"""A model that writes text with its matrices as bitmaps (kernels/bitmap.py), where they are faster than dense ones."""

import torch
from torch import nn

from nt_dist.kernels.bitmap import Bitmap, Chooser
from nt_dist.model.layers import Linear


class BitmapLinear(Linear):
    """x · Wᵀ, for each trail; the weight says what it is and has no values of its own any more."""

    def __init__(self, linear: Linear, matrices: Bitmap):
        super().__init__(linear.weight)
        self.matrices = matrices
        self.weight.values = nn.Parameter(torch.empty(0), requires_grad=False)
        if hasattr(self.weight, "mask"):
            self.weight.mask = torch.empty(0, dtype=torch.bool)

    def builds(self, device: torch.device) -> bool:
        """Say no: it multiplies by bits."""
        return False

    def forward(self, x: torch.Tensor, is_turned: bool = False) -> torch.Tensor:
        """Transform x [T or 1, B, S, in] → [T, B, S, out], tokens first in memory always: there are few of them."""
        rows = x.expand(self.matrices.shape[0], *x.shape[1:]).flatten(1, 2)
        return self.matrices.multiply(rows).unflatten(1, x.shape[1:-1])


@torch.no_grad()
def hold_sparse(model: nn.Module, dtype: torch.dtype = torch.float32, kernel: str = "fastest") -> int:
    """Round a model's matrices to ``dtype`` and replace those that are faster as bitmaps; return how many.

    Its tensors are dense. A trail's matrices are multiplied with those of all others, in one call. Where some were
    replaced the model can only compute after that: their weights are no longer there for an export. On GPUs none are.

    Args:
        dtype: fp32; or bf16, of which half the bytes are read. Activations stay what they are.
        kernel: "fastest", by a measurement; or "sparse", all.
    """
    linear = {path: each for path, each in model.named_modules() if type(each) is Linear}
    wins, count = Chooser(sum(each.weight.values.nbytes for each in linear.values()), dtype=torch.float32), 0
    for path, each in linear.items():
        values = each.weight.values.detach()
        rounded = values.to(dtype)
        values.copy_(rounded)
        if values.device.type != "cpu":
            continue
        matrices = Bitmap.of(rounded)
        if kernel == "sparse" or wins(matrices):
            model.set_submodule(path, BitmapLinear(each, matrices))
            count += 1
    return count
