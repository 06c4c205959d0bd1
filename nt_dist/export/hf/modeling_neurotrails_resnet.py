"""A NeuroTrails ensemble of ResNets for transformers (arXiv 2505.17909): a trunk that forks into trails.

It needs torch and transformers only. Shapes: B pictures, C channels, H and W sides, K classes, T trails.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.versions import require_version

require_version("transformers>=4.57", "A NeuroTrails ensemble has been tried with no older one.")
_DEFAULTS = {
    "block": "bottleneck",  # or "basic", or "preactivation" as in a Wide ResNet
    "depths": [3, 4, 6, 3],  # blocks of each stage; each halves the picture's side but the first
    "width": 64,  # channels inside the first stage's blocks; each stage doubles them
    "stem": "large",  # 7×7, stride 2, and pooling; or "small", 3×3
    "stem_width": 64,
    "image_size": 224,
    "norm_eps": 1e-5,
    "num_trails": 3,
    "trail_layers": 10,
    "fork_at_embedding": False,  # whether each trail has a stem of its own (a full ensemble)
    "combine": "prob",
    "initializer_range": 0.02,
}


class NeuroTrailsResNetConfig(PretrainedConfig):
    """What a NeuroTrailsForImageClassification is built from.

    ``combine`` says what ``logits`` are: "prob", the log of the mean of the trails' probabilities; "logit", the mean of
    their logits; or one trail's number, from 1.
    """

    model_type = "neurotrails_resnet"

    def __init__(self, **settings):
        for name, default in _DEFAULTS.items():
            setattr(self, name, settings.pop(name, default))
        super().__init__(**settings)


@dataclass
class NeuroTrailsImageOutput(ModelOutput):
    """What a forward pass gives; None for what was not asked for."""

    loss: torch.Tensor | None = None  # mean cross-entropy of the logits
    logits: torch.Tensor | None = None  # the ensemble's, [B, K]; log-probabilities with combine = "prob"
    trail_logits: torch.Tensor | None = None  # each trail's own, [T, B, K]


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded by half its kernel."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Stem(nn.Module):
    """Pictures [B, 3, H, W] to the first hidden state."""

    def __init__(self, config: NeuroTrailsResNetConfig):
        super().__init__()
        self.is_large = config.stem == "large"
        kernel, stride = (7, 2) if self.is_large else (3, 1)
        self.convolution = convolution(3, config.stem_width, kernel, stride)
        self.norm = None if config.block == "preactivation" else nn.BatchNorm2d(config.stem_width, config.norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, stem_width, H, W], of a large stem a quarter of each side."""
        x = self.convolution(x)
        if self.norm is not None:
            x = F.relu(self.norm(x))
        return F.max_pool2d(x, 3, 2, 1) if self.is_large else x


class Block(nn.Module):
    """A residual block of the trunk or of one trail, with batch norm and ReLU behind each convolution (ResNet v1.5)."""

    def __init__(self, config: NeuroTrailsResNetConfig, inputs: int, inside: int, outputs: int, stride: int):
        super().__init__()
        is_bottleneck, eps = config.block == "bottleneck", config.norm_eps
        shapes = [(inputs, inside, 1, 1), (inside, inside, 3, stride), (inside, outputs, 1, 1)]
        shapes = shapes if is_bottleneck else [(inputs, inside, 3, stride), (inside, outputs, 3, 1)]
        is_before = config.block == "preactivation"  # norms come before their convolutions
        self.num_convolutions, has_shortcut = len(shapes), stride > 1 or inputs != outputs
        for number, shape in enumerate(shapes, start=1):
            self.add_module(f"convolution{number}", convolution(*shape))
            self.add_module(f"norm{number}", nn.BatchNorm2d(shape[0 if is_before else 1], eps))
        self.shortcut = convolution(inputs, outputs, 1, stride) if has_shortcut else None
        self.shortcut_norm = nn.BatchNorm2d(outputs, eps) if has_shortcut and not is_before else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform [B, C, H, W]."""
        beside = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        for number in range(1, self.num_convolutions + 1):
            x = self.get_submodule(f"norm{number}")(self.get_submodule(f"convolution{number}")(x))
            x = F.relu(x if number < self.num_convolutions else x + beside)
        return x


class PreactivationBlock(Block):
    """A residual block of a Wide ResNet: batch norm and ReLU come before each convolution (arXiv 1603.05027)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform [B, C, H, W]."""
        active = F.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        return beside + self.convolution2(F.relu(self.norm2(self.convolution1(active))))


def blocks(config: NeuroTrailsResNetConfig) -> list[tuple[int, int, int, int]]:
    """Return channels read, inside and given, and the stride, of each block on the way from stem to classifier."""
    expansion, shapes, channels = 4 if config.block == "bottleneck" else 1, [], config.stem_width
    for stage, depth in enumerate(config.depths):
        inside = config.width << stage
        for number in range(depth):
            shapes.append((channels, inside, inside * expansion, 2 if stage and number == 0 else 1))
            channels = inside * expansion
    return shapes


class Trail(nn.Module):
    """One member: blocks, the mean over the picture and the classifier."""

    def __init__(self, config: NeuroTrailsResNetConfig, layers: list[nn.Module], features: int):
        super().__init__()
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.BatchNorm2d(features, config.norm_eps) if config.block == "preactivation" else None
        self.classifier = nn.Linear(features, config.num_labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of [B, C, H, W]."""
        for block in self.blocks:
            x = block(x)
        x = x if self.norm is None else F.relu(self.norm(x))
        return self.classifier(x.mean((2, 3)))


class NeuroTrailsForImageClassification(PreTrainedModel):
    """Stem, trunk, trails; predicts what the trails together predict."""

    config_class = NeuroTrailsResNetConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = True  # num_items_in_batch, for transformers' Trainer
    _no_split_modules = ("Block", "PreactivationBlock")

    def __init__(self, config: NeuroTrailsResNetConfig):
        super().__init__(config)
        kind = PreactivationBlock if config.block == "preactivation" else Block
        shapes = blocks(config)
        fork = len(shapes) - config.trail_layers
        stems = (Stem(config) for _ in range(config.num_trails if config.fork_at_embedding else 1))
        self.stem = nn.ModuleList(stems)
        self.trunk = nn.ModuleList(kind(config, *shape) for shape in shapes[:fork])
        features = shapes[-1][2]
        self.trails = nn.ModuleList(
            Trail(config, [kind(config, *shape) for shape in shapes[fork:]], features) for _ in range(config.num_trails)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        combine: str | int | None = None,
        output_trail_logits: bool = False,
        return_dict: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ):
        """Predict the classes of pictures.

        Args:
            pixel_values: [B, 3, H, W], as the image processor gives them.
            labels: Classes, [B].
            combine: None: as the config says.
            output_trail_logits: Whether each trail's own logits are returned as well.
            num_items_in_batch: What the loss is the sum divided by; None: the number of pictures.
            output_hidden_states: Must be false: each trail has its own.
        """
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            raise ValueError("output_hidden_states must be false: an ensemble has them by trail, and gives none")
        states = [stem(pixel_values) for stem in self.stem]
        for block in self.trunk:
            states = [block(x) for x in states]
        states = states if len(states) == len(self.trails) else states * len(self.trails)
        logits = torch.stack([trail(x) for trail, x in zip(self.trails, states, strict=True)])
        combined = combine_trails(logits, self.config.combine if combine is None else combine)
        loss = None
        if labels is not None and num_items_in_batch is None:
            loss = F.cross_entropy(combined, labels)
        elif labels is not None:
            loss = F.cross_entropy(combined, labels, reduction="sum") / num_items_in_batch
        output = NeuroTrailsImageOutput(loss, combined, logits if output_trail_logits else None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def combine_trails(logits: torch.Tensor, how: str | int) -> torch.Tensor:
    """Return the ensemble's logits [B, K] of the trails' [T, B, K]; see NeuroTrailsResNetConfig.combine."""
    if how == "prob":
        return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))
    if how == "logit":
        return logits.float().mean(0)
    if isinstance(how, int) and 1 <= how <= len(logits):
        return logits[how - 1].float()
    raise ValueError(f"combine = {how!r} must be 'prob', 'logit' or a trail's number from 1 to {len(logits)}")
