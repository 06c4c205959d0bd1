"""The layers of a ResNet, for one trail or many at once.

A hidden state is a list of T tensors [B, C, H, W] in channels_last, one a trail; the trunk is the case T = 1. A loop of
convolutions over trails was measured faster than one grouped convolution for nearly every shape, and needs no copies.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.config.settings import Config
from nt_dist.model.layers import Linear
from nt_dist.model.place import Place
from nt_dist.model.trails import FORK, MakeWeight, ResidualBlock
from nt_dist.resnet.norm import BatchNorm
from nt_dist.resnet.weights import BlockShape, block_shapes, convolutions, norms
from nt_dist.sparsity.weight import Weight

States = list[torch.Tensor]


class Convolution(nn.Module):
    """Each trail's convolution, without bias, padded by half its kernel."""

    def __init__(self, weight: Weight, stride: int):
        super().__init__()
        self.weight, self.stride = weight, stride

    def forward(self, states: States) -> States:
        """Convolve T states [B, in, H, W] → [B, out, H / stride, W / stride]."""
        return list(
            self.weight(lambda weight, *xs: _Convolution.apply(weight.values, weight, self.stride, *xs), *states)
        )


class _Convolution(torch.autograd.Function):
    """Convolutions by one weight's kernels [T, out, in, k, k], built anew in backward instead of being kept.

    The Parameter itself is kept, not a saved tensor: under ZeRO 3 its data is gathered again before backward.
    """

    @staticmethod
    def forward(ctx, values, weight, stride, *states):
        kernels = weight.build(values)
        ctx.save_for_backward(*states)
        ctx.values, ctx.weight, ctx.stride, ctx.padding = values, weight, stride, kernels.shape[-1] // 2
        return tuple(
            F.conv2d(x, kernel, stride=stride, padding=ctx.padding)
            for x, kernel in zip(states, _laid_out(kernels), strict=True)
        )

    @staticmethod
    def backward(ctx, *gradients):
        kernels = _laid_out(ctx.weight.build(ctx.values))
        stride, padding, of_states, of_values = [ctx.stride] * 2, [ctx.padding] * 2, [], None
        needed = [ctx.needs_input_grad[3], ctx.needs_input_grad[0], False]
        dense = kernels[0].new_empty(len(kernels), *kernels[0].shape) if ctx.needs_input_grad[0] else None
        for row, (x, gradient, kernel) in enumerate(zip(ctx.saved_tensors, gradients, kernels, strict=True)):
            arguments = (None, stride, padding, [1, 1], False, [0, 0], 1, needed)
            of_state, of_kernel, _ = torch.ops.aten.convolution_backward(gradient, x, kernel, *arguments)
            of_states.append(of_state)
            if dense is not None:
                dense[row] = of_kernel  # which is in channels_last
        if dense is not None:
            of_values = ctx.weight.take_gradient(dense, may_overwrite=True)
        return of_values, None, None, *of_states


def _laid_out(kernels: torch.Tensor) -> list[torch.Tensor]:
    return [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]


class Stem(nn.Module):
    """Pictures to the first hidden state."""

    def __init__(self, config: Config, make: MakeWeight, place: Place):
        super().__init__()
        model = config.model
        self.place, self.is_large = place, model.stem == "large"
        self.convolution = Convolution(make("stem.convolution"), 2 if self.is_large else 1)
        self.norm = None if model.block == "preactivation" else BatchNorm(config, "stem.norm", make)
        self.mean, self.std = config.data.mean, config.data.std

    def forward(self, pictures: torch.Tensor) -> States:
        """Read pictures, bytes [B, H, W, 3]; of the trunk's share of them, where the stem is the trunk's."""
        weight = self.convolution.weight
        if not weight.spec.in_trail:
            pictures = self.place.into_trunk(pictures)
        mean, std = (torch.tensor(each, device=pictures.device) * 255 for each in (self.mean, self.std))
        x = ((pictures - mean) / std).to(weight.values.dtype).permute(0, 3, 1, 2)  # channels_last as it is
        states = self.convolution([x] * len(weight.trails))
        if self.norm is not None:
            states = [F.relu_(x) for x in self.norm(states)]
        return [F.max_pool2d(x, 3, 2, 1) for x in states] if self.is_large else states


class Fork(nn.Module):
    """Where the trunk parts into trails."""

    def __init__(self, num_trails: int, place: Place):
        super().__init__()
        self.num_trails, self.place = num_trails, place

    def forward(self, states: States) -> States:
        """Give every trail the trunk's state."""
        (x,) = self.place.fork(states[0][None])
        return [x.contiguous(memory_format=torch.channels_last)] * self.num_trails


class Block(ResidualBlock):
    """Residual block, "basic" or "bottleneck": each convolution is followed by a batch norm."""

    def __init__(self, config: Config, number: int, shape: BlockShape, make: MakeWeight):
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {
                name: Convolution(make(f"blocks.{number}.{name}"), each[3])
                for name, each in convolutions(config, shape).items()
            }
        )
        self.norms = nn.ModuleDict(
            {name: BatchNorm(config, f"blocks.{number}.{name}", make) for name in norms(config, shape)}
        )

    def forward(self, states: States) -> States:
        """Transform T states [B, C, H, W]."""
        x, beside = states, states
        if "shortcut" in self.convolutions:
            beside = self.norms["shortcut_norm"](self.convolutions["shortcut"](states))
        last = len(self.norms) - ("shortcut" in self.convolutions)
        for number in range(1, last + 1):
            x = self.norms[f"norm{number}"](self.convolutions[f"convolution{number}"](x))
            if number < last:
                x = [F.relu_(each) for each in x]
        return [F.relu_(one + other) for one, other in zip(x, beside, strict=True)]


class PreactivationBlock(Block):
    """Residual block of a Wide ResNet (He et al., arXiv 1603.05027): norm and ReLU come before each convolution."""

    def forward(self, states: States) -> States:
        """Transform T states [B, C, H, W]."""
        x = [F.relu_(each) for each in self.norms["norm1"](states)]
        beside = self.convolutions["shortcut"](x) if "shortcut" in self.convolutions else states
        x = self.convolutions["convolution1"](x)
        x = [F.relu_(each) for each in self.norms["norm2"](x)]
        x = self.convolutions["convolution2"](x)
        return [one + other for one, other in zip(x, beside, strict=True)]


class Classifier(nn.Module):
    """Mean over the picture and the output matrix, with a norm of its own for each trail in a Wide ResNet."""

    def __init__(self, config: Config, make: MakeWeight):
        super().__init__()
        self.norm = BatchNorm(config, "classifier.norm", make) if config.model.block == "preactivation" else None
        self.matrix, self.bias = Linear(make("classifier.matrix")), make("classifier.bias")

    def forward(self, states: States) -> torch.Tensor:
        """Return logits [T, B, 1, classes]."""
        if self.norm is not None:
            states = [F.relu_(x) for x in self.norm(states)]
        features = torch.stack([x.mean((2, 3)) for x in states])[:, :, None]
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
