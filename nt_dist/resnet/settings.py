"""The section ``[model]`` of a ResNet, and the rules over its settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nt_dist.config.keys import POSITIVE, SHARE, Rule, at_least, identity, nearest_numbers, reads
from nt_dist.config.settings import Config
from nt_dist.images import settings as images

_DEPTHS = Rule("must be one or more numbers above 0", lambda value: len(value) > 0 and min(value) > 0)


@dataclass(frozen=True)
class Model:
    """The network that each trail is, from its stem to its classifier."""

    family: str = identity("resnet", "Kind of network.")
    block: Literal["basic", "bottleneck", "preactivation"] = identity(
        "bottleneck", "Residual blocks: basic or bottleneck (ResNet, v1.5) or preactivation (Wide ResNet)."
    )
    depths: tuple[int, ...] = identity(
        (3, 4, 6, 3), "Blocks of each stage; each halves the side but the first.", _DEPTHS
    )
    width: int = identity(64, "Channels inside the first stage's blocks; each stage doubles them.", at_least(1))
    stem: Literal["large", "small"] = identity(
        "large", "First layer: large (7×7, stride 2, and pooling: 224 pixels) or small (3×3: 32 pixels)."
    )
    stem_width: int = identity(64, "Channels of the first layer.", at_least(1))
    num_classes: int = identity(1000, "Classes.", at_least(2))
    image_size: int = identity(224, "Side of a picture, in pixels.", at_least(1))
    init: Literal["torch", "kaiming"] = identity(
        "torch", "Convolutions' initial standard deviation: torch, √(1 / (3 fan-in)), or kaiming, √(2 / fan-out)."
    )
    norm_batch: int = identity(
        32, "Pictures whose mean and variance a batch norm takes; a divisor of every micro-batch.", at_least(2)
    )
    norm_momentum: float = identity(0.1, "Share of a step's mean and variance in the running ones.", SHARE)
    norm_eps: float = identity(1e-5, "Added to the variance in batch norm.", POSITIVE)

    @property
    def num_layers(self) -> int:
        """Residual blocks."""
        return sum(self.depths)

    @property
    def expansion(self) -> int:
        """Channels of a block's output for each inside it."""
        return 4 if self.block == "bottleneck" else 1


@reads("model.norm_batch", "train.micro_batch_size", "parallel.trail", "parallel.trunk", "trails.fork")
def _norm_batch_divides(config: Config) -> Iterator[str]:
    micro, norm = config.train.micro_batch_size, config.model.norm_batch
    shares = config.parallel.trail if config.splits_trunk else 1
    if micro % (norm * shares):
        near = nearest_numbers(norm, lambda size: micro % (size * shares) == 0)
        what = f"train.micro_batch_size = {micro}"
        if shares > 1:
            what += f" / parallel.trail = {shares}, the share of each trail rank in the trunk"
        yield f"model.norm_batch = {norm} must divide {what}; nearest: {near}"


@reads("parallel.tensor", "parallel.pipe")
def _is_not_cut(config: Config) -> Iterator[str]:
    for name in ("tensor", "pipe"):
        if (degree := getattr(config.parallel, name)) > 1:
            yield f"parallel.{name} = {degree} must be 1 with model.family = 'resnet': it is cut over trails and data"


@reads("sparsity.topology_shards", "model.width", "model.stem_width")
def _shards_divide_widths(config: Config) -> Iterator[str]:
    shards, model = config.sparsity.topology_shards, config.model
    for name, width in {"model.width": model.width, "model.stem_width": model.stem_width}.items():
        if width % shards:
            near = nearest_numbers(shards, lambda count: model.width % count == 0 and model.stem_width % count == 0)
            yield f"sparsity.topology_shards = {shards} must divide {name} = {width}; nearest: {near}"


@reads("train.mup_base_hidden")
def _has_widths_of_its_own(config: Config) -> Iterator[str]:
    if base := config.train.mup_base_hidden:
        yield f"train.mup_base_hidden = {base} must be 0 with model.family = 'resnet': initial values follow the widths"


_SGD = {
    "train.optimizer": "sgd",
    "train.lr": 0.1,
    "train.momentum": 0.9,
    "train.nesterov": True,
    "train.weight_decay": 5e-4,
}
RECIPES = {
    "default": _SGD | {"train.min_lr_ratio": 0.0},
    "paper": _SGD  # the code of arXiv 2505.17909 for pictures
    | {
        "train.objective": "mean",
        "train.average_decay": 0.0,
        "train.warmup_steps": 0,
        "train.lr_schedule": "steps",
        "train.decay_vectors": True,
        "sparsity.drop": "magnitude",
        "sparsity.grow": "gradient",
        "sparsity.start_density": 0.0,
        "sparsity.drop_fraction": 0.5,
        "sparsity.drop_schedule": "cosine",
        "sparsity.update_every": 1000,
        "sparsity.stop_fraction": 1.0,
    },
}

RULES = (*images.RULES, _norm_batch_divides, _is_not_cut, _shards_divide_widths, _has_widths_of_its_own)
