"""A plain PyTorch loop over the plain model of either family."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.plain_model import PlainModel
from benchmarks.plain_resnet import PlainResNet
from nt_dist.config import Config

MODELS = {"llama": PlainModel, "resnet": PlainResNet}
"""By the family's name."""


class PlainTrainer:
    """A plain loop: forward, backward, a fused optimizer of torch.

    In bf16 the module's parameters are bf16, a batch norm's aside, and the optimizer steps fp32 masters: gradients are
    added to the masters' in fp32, new masters copied to the parameters. It is what DeepSpeed's bf16 does, written by
    hand, and a harder opponent than autocast, which keeps fp32 parameters and casts every weight in every pass.

    Args:
        config: Sizes, learning rate, the optimizer's settings, precision.
        device: Where to train.
    """

    def __init__(self, config: Config, device: torch.device):
        self.model = MODELS[config.family.name](config).to(device)
        self.num_outputs = config.family.num_outputs(config)
        self.scale = 1 / config.trails.count if config.train.objective == "mean" else 1.0
        self.smoothing = config.train.label_smoothing
        self.parameters = list(self.model.parameters())
        self.masters = self.parameters
        if config.train.precision == "bf16":
            self.masters = [nn.Parameter(parameter.detach().clone()) for parameter in self.parameters]
            self.model.bfloat16()
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.float()  # running statistics stall in bf16
        self.optimizer = plain_optimizer(config, self.masters)

    def loss(self, batch, tokens: float) -> torch.Tensor:
        """What is minimised of a micro-batch, whose step has so many targets in all."""
        logits = (each[..., : self.num_outputs] for each in self.model(batch.inputs))
        losses = [token_losses(each, batch.targets, self.smoothing) for each in logits]
        return self.scale * sum((each * batch.weights).sum() for each in losses) / tokens

    def step(self, micro_batches: list) -> None:
        """One optimizer step on micro-batches (inputs, targets and weights [B, S]); the loss is a mean over targets."""
        tokens = sum(float(batch.weights.sum()) for batch in micro_batches)
        for batch in micro_batches:
            self.loss(batch, tokens).backward()
            if self.masters is not self.parameters:
                self._collect_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.masters is not self.parameters:
            torch._foreach_copy_(
                [parameter.data for parameter in self.parameters], [each.data for each in self.masters]
            )

    def _collect_gradients(self) -> None:
        """Adds the bf16 gradients to the masters' fp32 ones, as the trainer does."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None


def plain_optimizer(config: Config, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW or SGD as the config has it, fused, with one group."""
    train = config.train
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters, train.lr, train.betas, train.adam_eps, train.weight_decay, fused=True)
    options = {"momentum": train.momentum, "nesterov": train.nesterov, "weight_decay": train.weight_decay}
    return torch.optim.SGD(parameters, train.lr, fused=True, **options)


def token_losses(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of every target in fp32: logits [B, S, V], targets [B, S] -> [B, S]."""
    rows, classes = logits.flatten(0, 1).float(), targets.flatten()
    return F.cross_entropy(rows, classes, reduction="none", label_smoothing=smoothing).view(targets.shape)
