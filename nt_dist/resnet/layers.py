"""The layers of a ResNet, for one trail or many at once.

A hidden state is a list of T tensors [B, C, H, W] in channels_last, one a trail; the trunk is the case T = 1. A layer
takes one trail after the other through all of its operations: what one writes is still in the caches when the next
reads it. One grouped convolution over the trails was measured slower for nearly every shape.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.config.settings import Config
from nt_dist.model.layers import Linear
from nt_dist.model.place import Place
from nt_dist.model.trails import FORK, MakeWeight, ResidualBlock, weights_of
from nt_dist.resnet.norm import BatchNorm
from nt_dist.resnet.weights import BlockShape, block_shapes, convolutions, keeps_kernel, norms
from nt_dist.sparsity.weight import Weight

States = list[torch.Tensor]
Operations = dict[str, Callable[[torch.Tensor], torch.Tensor]]  # one trail's convolutions and norms, by name


class Convolution(nn.Module):
    """Each trail's convolution, without bias, padded by half its kernel."""

    def __init__(self, weight: Weight, stride: int):
        super().__init__()
        self.weight, self.stride = weight, stride

    def per_trail(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return for each trail what convolves its [B, in, H, W] → [B, out, H / stride, W / stride]."""
        weight, side = self.weight, self.weight.local_shape[-1]
        kernels: list[torch.Tensor] = []  # built once for all trails, where backward keeps them
        values: list[torch.Tensor] = []

        def convolve(row: int, x: torch.Tensor) -> torch.Tensor:
            of_groups = weight.convolution(x.device)
            if of_groups is None and keeps_kernel(side, math.prod(weight.local_shape), x.numel()):
                if not kernels:
                    kernels.extend(_channels_last(weight.dense()).unbind())
                return F.conv2d(x, kernels[row], stride=self.stride, padding=side // 2)
            if not values:
                values.extend(weight.values.unbind())
            return (of_groups or _Convolution).apply(values[row], weight, row, self.stride, x)

        return [partial(convolve, row) for row in range(len(weight.trails))]


def _channels_last(kernels: torch.Tensor) -> torch.Tensor:
    """Lay out kernels [T, out, in, k, k] so that each trail's are in channels_last."""
    return kernels.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


class _Convolution(torch.autograd.Function):
    """A convolution by one trail's kernels [out, in, k, k], built anew in backward: they are too large to keep.

    Their values are then taken from the weight: under ZeRO 3 they are gathered again before backward.
    """

    @staticmethod
    def forward(ctx, values, weight, row, stride, x):
        ctx.weight, ctx.rows, ctx.stride = weight, slice(row, row + 1), stride
        ctx.save_for_backward(x)
        kernel = _kernel(weight, ctx.rows)
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    @staticmethod
    def backward(ctx, gradient):
        (x,), kernel, of_values = ctx.saved_tensors, _kernel(ctx.weight, ctx.rows), None
        needed = [ctx.needs_input_grad[4], ctx.needs_input_grad[0], False]
        arguments = (None, [ctx.stride] * 2, [kernel.shape[-1] // 2] * 2, [1, 1], False, [0, 0], 1, needed)
        of_x, of_kernel, _ = torch.ops.aten.convolution_backward(gradient, x, kernel, *arguments)
        if of_kernel is not None:  # which is in channels_last
            (of_values,) = ctx.weight.take_gradient(of_kernel.contiguous()[None], may_overwrite=True, rows=ctx.rows)
        return of_values, None, None, None, of_x


def _kernel(weight: Weight, rows: slice) -> torch.Tensor:
    (kernel,) = _channels_last(weight.build(weight.values[rows], rows))
    return kernel


class TrailByTrail(nn.Module, ABC):
    """A layer that :meth:`one` describes for one trail."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self._weights = list(weights_of(self.parts).values())

    @abstractmethod
    def one(self, do: Operations, x: torch.Tensor) -> torch.Tensor:
        """Transform one trail's state by its operations."""

    def forward(self, states: States) -> States:
        """Transform T states [B, C, H, W]."""
        run = self._each
        for weight in self._weights:  # ZeRO 3 has their values here until the last trail is done
            run = partial(weight, lambda _, *states, run=run: run(*states))
        return list(run(*states))

    def _each(self, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        of_trails: list[Operations] = [{} for _ in states]
        for name, part in self.parts.items():
            for do, operation in zip(of_trails, part.per_trail(), strict=True):
                do[name] = operation
        return tuple(self.one(do, x) for do, x in zip(of_trails, states, strict=True))


class Stem(TrailByTrail):
    """Pictures to the first hidden state."""

    def __init__(self, config: Config, make: MakeWeight, place: Place):
        model = config.model
        parts = {"convolution": Convolution(make("stem.convolution"), 2 if model.stem == "large" else 1)}
        if model.block != "preactivation":
            parts["norm"] = BatchNorm(config, "stem.norm", make)
        super().__init__(parts)
        self.place, self.is_large = place, model.stem == "large"
        self.colors = config.data.mean, config.data.std
        self._scales: dict[torch.device, list[torch.Tensor]] = {}  # no buffers, which would be cast to bf16

    def forward(self, pictures: torch.Tensor) -> States:
        """Read pictures, bytes [B, H, W, 3]; of the trunk's share of them, where the stem is the trunk's."""
        weight = self.parts["convolution"].weight
        if not weight.spec.in_trail:
            pictures = self.place.into_trunk(pictures)
        if pictures.device not in self._scales:  # once: a GPU would wait for them in every pass
            self._scales[pictures.device] = [torch.tensor(each, device=pictures.device) * 255 for each in self.colors]
        mean, std = self._scales[pictures.device]
        x = ((pictures - mean) / std).to(weight.values.dtype).permute(0, 3, 1, 2)  # channels_last as it is
        return super().forward([x] * len(weight.trails))

    def one(self, do: Operations, x: torch.Tensor) -> torch.Tensor:
        """Convolve; norm and ReLU where blocks have theirs behind convolutions; pool where pictures are large."""
        x = do["convolution"](x)
        if "norm" in do:
            x = F.relu_(do["norm"](x))
        return F.max_pool2d(x, 3, 2, 1) if self.is_large else x


class Fork(nn.Module):
    """Where the trunk parts into trails."""

    def __init__(self, num_trails: int, place: Place):
        super().__init__()
        self.num_trails, self.place = num_trails, place

    def forward(self, states: States) -> States:
        """Give every trail the trunk's state."""
        (x,) = self.place.fork(states[0][None])
        return [x.contiguous(memory_format=torch.channels_last)] * self.num_trails


class Block(TrailByTrail, ResidualBlock):
    """Residual block, "basic" or "bottleneck": each convolution is followed by a batch norm."""

    def __init__(self, config: Config, number: int, shape: BlockShape, make: MakeWeight):
        shapes, prefix = convolutions(config, shape), f"blocks.{number}"
        of_block = {name: Convolution(make(f"{prefix}.{name}"), each[3]) for name, each in shapes.items()}
        super().__init__(
            of_block | {name: BatchNorm(config, f"{prefix}.{name}", make) for name in norms(config, shape)}
        )
        self.num_convolutions = len(shapes) - shape.has_shortcut

    def one(self, do: Operations, x: torch.Tensor) -> torch.Tensor:
        """Add the path beside the block, which has a convolution of its own where sizes change; then ReLU."""
        beside = do["shortcut_norm"](do["shortcut"](x)) if "shortcut" in do else x
        for number in range(1, self.num_convolutions + 1):
            x = do[f"norm{number}"](do[f"convolution{number}"](x))
            if number < self.num_convolutions:
                x = F.relu_(x)
        return F.relu_(x.add_(beside))


class PreactivationBlock(Block):
    """Residual block of a Wide ResNet (He et al., arXiv 1603.05027): norm and ReLU come before each convolution."""

    def one(self, do: Operations, x: torch.Tensor) -> torch.Tensor:
        """Add the path beside the block, which shares the first norm where it has a convolution."""
        inside = F.relu_(do["norm1"](x))
        beside = do["shortcut"](inside) if "shortcut" in do else x
        inside = do["convolution1"](inside)
        return do["convolution2"](F.relu_(do["norm2"](inside))).add_(beside)


class Classifier(TrailByTrail):
    """Mean over the picture and the output matrix, with a norm of its own for each trail in a Wide ResNet."""

    def __init__(self, config: Config, make: MakeWeight):
        is_wide = config.model.block == "preactivation"
        super().__init__({"norm": BatchNorm(config, "classifier.norm", make)} if is_wide else {})
        self.matrix, self.bias = Linear(make("classifier.matrix")), make("classifier.bias")

    def one(self, do: Operations, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C]."""
        return (F.relu_(do["norm"](x)) if "norm" in do else x).mean((2, 3))

    def forward(self, states: States) -> torch.Tensor:
        """Return logits [T, B, 1, classes]."""
        features = torch.stack(super().forward(states))[:, :, None]
        return self.bias(lambda bias, x: x + bias.dense()[:, None, None], self.matrix(features))


def layers(config: Config, make: MakeWeight, place: Place) -> dict[str, Callable[[], nn.Module]]:
    """Return one function per layer that makes it, by the layer's name."""
    kind = PreactivationBlock if config.model.block == "preactivation" else Block
    shapes, spec = block_shapes(config), next(each for each in config.family.weights(config) if each.in_trail)

    def block(number: int, shape: BlockShape) -> Callable[[], nn.Module]:
        return lambda: kind(config, number, shape, make)

    return {
        "stem": lambda: Stem(config, make, place),
        **{f"blocks.{number}": block(number, shape) for number, shape in enumerate(shapes)},
        FORK: lambda: Fork(len(place.trails(spec)), place),
        "classifier": lambda: Classifier(config, make),
    }
