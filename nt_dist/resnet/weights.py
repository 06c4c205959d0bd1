"""The weights of a ResNet (He et al., arXiv 1512.03385; with the stride on the 3×3 convolution, "v1.5") and of a Wide
ResNet (Zagoruyko and Komodakis, arXiv 1605.07146): names, shapes, layers.

Convolutions and the classifier are [out, in, kernel, kernel] and [classes, features]; convolutions are cut into shards
along their outputs, the classifier along its inputs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nt_dist.config.settings import Config
from nt_dist.sparsity.spec import WeightSpec


@dataclass(frozen=True)
class BlockShape:
    """One residual block: channels and stride, and the side of the picture that it reads."""

    inputs: int
    inside: int
    outputs: int
    stride: int
    side: int

    @property
    def has_shortcut(self) -> bool:
        """Whether the path beside the block is a convolution of its own."""
        return self.stride > 1 or self.inputs != self.outputs

    @property
    def side_after(self) -> int:
        """Side of the picture that it gives."""
        return -(-self.side // self.stride)


def stem_sides(config: Config) -> tuple[int, int]:
    """Return the side of a picture after the first convolution, and of what the first block reads."""
    side = config.model.image_size
    if config.model.stem == "small":
        return side, side
    side = -(-side // 2)
    return side, -(-side // 2)


def block_shapes(config: Config) -> list[BlockShape]:
    """Return the shape of every block, in order."""
    model, shapes = config.model, []
    channels, side = model.stem_width, stem_sides(config)[1]
    for stage, depth in enumerate(model.depths):
        inside = model.width << stage
        for number in range(depth):
            stride = 2 if stage and number == 0 else 1
            shapes.append(BlockShape(channels, inside, inside * model.expansion, stride, side))
            channels, side = shapes[-1].outputs, shapes[-1].side_after
    return shapes


def convolutions(config: Config, shape: BlockShape) -> dict[str, tuple[int, int, int, int]]:
    """Return a block's convolutions by name: outputs, inputs, kernel size, stride; the shortcut's is the last."""
    inputs, inside, outputs, stride = shape.inputs, shape.inside, shape.outputs, shape.stride
    if config.model.block == "bottleneck":
        found = {
            "convolution1": (inside, inputs, 1, 1),
            "convolution2": (inside, inside, 3, stride),
            "convolution3": (outputs, inside, 1, 1),
        }
    else:
        found = {"convolution1": (inside, inputs, 3, stride), "convolution2": (outputs, inside, 3, 1)}
    if shape.has_shortcut:
        found["shortcut"] = (outputs, inputs, 1, stride)
    return found


def keeps_kernel(side: int, kernel: int, state: int) -> bool:
    """Whether a convolution's dense kernel is kept for backward beside the state that it read.

    A small one costs little memory, and building it and laying it out again cost 1 % of a step.

    Args:
        side: Its width and height; a matrix needs no other layout and is always built again.
        kernel, state: Elements of each.
    """
    return side > 1 and 8 * kernel <= state


def norms(config: Config, shape: BlockShape) -> dict[str, int]:
    """Return a block's batch norms by name, and their channels: one behind each convolution, or before it."""
    of_block = convolutions(config, shape)
    if config.model.block == "preactivation":
        return {f"norm{number}": of_block[f"convolution{number}"][1] for number in (1, 2)}
    names = {"shortcut": "shortcut_norm", **{f"convolution{number}": f"norm{number}" for number in (1, 2, 3)}}
    return {names[name]: outputs for name, (outputs, *_) in of_block.items()}


def weights(config: Config) -> list[WeightSpec]:
    """Return all weights and statistics; see :meth:`nt_dist.config.family.Family.weights`."""
    return [spec for name, in_trail in _layers(config) for spec in _of_layer(config, name, in_trail)]


def _layers(config: Config) -> Iterator[tuple[str, bool]]:
    """Yield the layers' names, and whether each is in the trails."""
    yield "stem", config.trails.fork == "embedding"
    yield from ((f"blocks.{number}", number >= config.trunk_layers) for number in range(config.model.num_layers))
    yield "classifier", True


def _of_layer(config: Config, layer: str, in_trail: bool) -> Iterator[WeightSpec]:
    copies, shards, model = config.trails.count if in_trail else 1, config.sparsity.topology_shards, config.model

    def convolution(name: str, shape: tuple[int, int, int, int], side: int) -> WeightSpec:
        outputs, inputs, kernel, stride = shape
        uses = (-(-side // stride)) ** 2
        # He et al., arXiv 1502.01852, for the backward pass; or the spread of what torch.nn.Conv2d starts with
        variance = 2 / outputs if model.init == "kaiming" else 1 / (3 * inputs)
        std, size = math.sqrt(variance) / kernel, (outputs, inputs, kernel, kernel)
        return WeightSpec(name, size, 0, copies, shards, None, 1.0, std, "convolution", in_trail, layer, uses)

    def vector(name: str, size: int, init: float | None, role: str) -> WeightSpec:
        return WeightSpec(name, (size,), 0, copies, 1, None, 1.0, init, role, in_trail, layer, 0)

    def norm(name: str, channels: int) -> Iterator[WeightSpec]:
        yield vector(f"{name}.scale", channels, None, "scale")
        yield vector(f"{name}.shift", channels, 0.0, "bias")
        yield vector(f"{name}.mean", channels, 0.0, "statistic")
        yield vector(f"{name}.variance", channels, None, "statistic")

    if layer == "stem":
        kernel, stride = (3, 1) if model.stem == "small" else (7, 2)
        yield convolution("stem.convolution", (model.stem_width, 3, kernel, stride), model.image_size)
        if model.block != "preactivation":
            yield from norm("stem.norm", model.stem_width)
    elif layer == "classifier":
        features = block_shapes(config)[-1].outputs
        if model.block == "preactivation":
            yield from norm("classifier.norm", features)
        size = (model.num_classes, features)
        std = 1 / math.sqrt(3 * features)
        yield WeightSpec("classifier.matrix", size, 1, copies, shards, None, 1.0, std, "linear", in_trail, layer, 1)
        yield vector("classifier.bias", model.num_classes, 0.0, "bias")
    else:
        shape = block_shapes(config)[int(layer.removeprefix("blocks."))]
        side = shape.side
        for name, each in convolutions(config, shape).items():
            yield convolution(f"{layer}.{name}", each, shape.side if name == "shortcut" else side)
            side = -(-side // each[3])
        for name, channels in norms(config, shape).items():
            yield from norm(f"{layer}.{name}", channels)
