"""Bytes that the layers of a ResNet keep for backward, for one trail and one picture.

Each convolution keeps its input, and its kernel where that is small beside it; each batch norm keeps what it
normalizes; a ReLU works in place, on the next convolution's input. What a layer gives is kept as the next one's input.
Vectors are left out.
"""

from nt_dist.config.family import LayerActivations
from nt_dist.config.settings import Config
from nt_dist.resnet.weights import BlockShape, block_shapes, convolutions, keeps_kernel, norms, stem_sides

_PIXEL_BYTES = 3


def activations(config: Config, layer: str) -> LayerActivations:
    """Return what ``layer`` holds; nothing is cut over tensor ranks."""
    model, element = config.model, config.element_bytes
    shapes = block_shapes(config)
    if layer == "stem":
        inside, after = stem_sides(config)
        state, result = model.stem_width * inside * inside, model.stem_width * after * after
        pictures = 3 * model.image_size**2
        inner = pictures + (0 if model.block == "preactivation" else state)
        inner += (state + 2 * result) if model.stem == "large" else 0  # pooling's input, and int64 places
        inner += _kernel(config, 3 if model.stem == "small" else 7, 3 * model.stem_width, pictures)
        return LayerActivations(_PIXEL_BYTES * model.image_size**2, element * result, element * inner, all_reduced=0)
    if layer == "classifier":
        last = shapes[-1]
        state = last.outputs * last.side_after**2
        inner = state if model.block == "preactivation" else 0
        return LayerActivations(element * state, element * model.num_classes, element * (inner + last.outputs), 0)
    shape = shapes[int(layer.removeprefix("blocks."))]
    state, result = shape.inputs * shape.side**2, shape.outputs * shape.side_after**2
    inner = element * _inner(config, shape)
    recomputed = element * 2 * result if config.train.activation_checkpointing else 0
    return LayerActivations(element * state, element * result, inner, 0, recomputed)


def _inner(config: Config, shape: BlockShape) -> float:
    """Elements that a block keeps beside its input."""
    side, kept, first = shape.side, 0, True
    for name, (outputs, inputs, size, stride) in convolutions(config, shape).items():
        read = inputs * (shape.side if name == "shortcut" else side) ** 2
        kept += _kernel(config, size, outputs * inputs, read)
        if name == "shortcut":
            continue
        if not first or config.model.block == "preactivation":  # else it is the block's input
            kept += inputs * side * side
        side, first = -(-side // stride), False
        kept += outputs * side * side if f"{name}".replace("convolution", "norm") in norms(config, shape) else 0
    if config.model.block == "preactivation":
        return kept - shape.outputs * shape.side_after**2  # no norm follows the last convolution
    return kept + (shape.outputs * shape.side_after**2 if shape.has_shortcut else 0)


def _kernel(config: Config, side: int, matrices: int, state: int) -> float:
    """A picture's share of the elements that a convolution keeps of its kernel, beside what it reads of a picture."""
    pictures, kernel = config.train.micro_batch_size, matrices * side * side
    return kernel / pictures if keeps_kernel(side, kernel, pictures * state) else 0
