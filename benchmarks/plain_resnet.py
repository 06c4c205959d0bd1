"""The same ResNet of torch.nn.Conv2d and torch.nn.BatchNorm2d: what the trainer of pictures is measured against.

Stem, trunk and trails as an ordinary user would write them, in channels_last: one module a trail, called one after the
other. Nothing here is shared with nt_dist/resnet, so that neither can be slow or wrong for the other's reasons; a test
compares logits and gradients.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nt_dist.config import Config


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution without bias, padded by half its kernel."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class PlainBlock(nn.Module):
    """One residual block: [B, C, H, W] -> [B, outputs, H / stride, W / stride]."""

    def __init__(self, model, inputs: int, inside: int, stride: int):
        super().__init__()
        self.is_preactivation = model.block == "preactivation"
        if model.block == "bottleneck":
            self.outputs = 4 * inside
            sizes = [(inputs, inside, 1, 1), (inside, inside, 3, stride), (inside, self.outputs, 1, 1)]
        else:
            self.outputs = inside
            sizes = [(inputs, inside, 3, stride), (inside, inside, 3, 1)]
        self.convolutions = nn.ModuleList(convolution(*size) for size in sizes)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(size[0] if self.is_preactivation else size[1], model.norm_eps) for size in sizes
        )
        self.shortcut = self.shortcut_norm = None
        if stride > 1 or inputs != self.outputs:
            self.shortcut = convolution(inputs, self.outputs, 1, stride)
            if not self.is_preactivation:
                self.shortcut_norm = nn.BatchNorm2d(self.outputs, model.norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm and ReLU before each convolution, or after it and after the sum."""
        if self.is_preactivation:
            inside = F.relu_(self.norms[0](x))
            beside = x if self.shortcut is None else self.shortcut(inside)
            inside = self.convolutions[0](inside)
            return self.convolutions[1](F.relu_(self.norms[1](inside))) + beside
        beside = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x))
        *first, last = zip(self.convolutions, self.norms, strict=True)
        for convolve, norm in first:
            x = F.relu_(norm(convolve(x)))
        convolve, norm = last
        return F.relu_(norm(convolve(x)) + beside)


class PlainStem(nn.Module):
    """Pictures, bytes [B, H, W, 3], to the first hidden state [B, C, H, W]."""

    def __init__(self, config: Config):
        super().__init__()
        model, self.is_large = config.model, config.model.stem == "large"
        self.convolution = convolution(3, model.stem_width, *((7, 2) if self.is_large else (3, 1)))
        self.norm = None if model.block == "preactivation" else nn.BatchNorm2d(model.stem_width, model.norm_eps)
        self.register_buffer("mean", torch.tensor(config.data.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.data.std) * 255, persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Normalize, convolve, and pool where pictures are large."""
        x = ((pictures - self.mean) / self.std).to(self.convolution.weight.dtype).permute(0, 3, 1, 2)
        x = self.convolution(x)
        if self.norm is not None:
            x = F.relu_(self.norm(x))
        return F.max_pool2d(x, 3, 2, 1) if self.is_large else x


class PlainTrail(nn.Module):
    """The blocks and the classifier of one trail."""

    def __init__(self, config: Config, blocks: list[PlainBlock]):
        super().__init__()
        model, features = config.model, blocks[-1].outputs
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(features, model.norm_eps) if model.block == "preactivation" else None
        self.classifier = nn.Linear(features, model.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, 1, classes] of this trail."""
        for block in self.blocks:
            x = block(x)
        if self.norm is not None:
            x = F.relu_(self.norm(x))
        return self.classifier(x.mean((2, 3)))[:, None]


class PlainResNet(nn.Module):
    """Stem, trunk and trails, all dense: pictures [B, H, W, 3] -> logits, a list of T tensors [B, 1, classes]."""

    def __init__(self, config: Config):
        super().__init__()
        num_stems = config.trails.count if config.trails.fork == "embedding" else 1
        self.stems = nn.ModuleList(PlainStem(config) for _ in range(num_stems))
        self.trunk = nn.ModuleList(self._blocks(config)[: config.trunk_layers])
        self.trails = nn.ModuleList(
            PlainTrail(config, self._blocks(config)[config.trunk_layers :]) for _ in range(config.trails.count)
        )
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _blocks(config: Config) -> list[PlainBlock]:
        """New blocks of one whole network."""
        model, channels, blocks = config.model, config.model.stem_width, []
        for stage, depth in enumerate(model.depths):
            for number in range(depth):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(PlainBlock(model, channels, model.width * 2**stage, stride))
                channels = blocks[-1].outputs
        return blocks

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each trail."""
        hidden = [stem(pictures) for stem in self.stems]
        for block in self.trunk:
            hidden = [block(each) for each in hidden]
        if len(hidden) < len(self.trails):
            hidden = hidden * len(self.trails)
        return [trail(each) for trail, each in zip(self.trails, hidden, strict=True)]
