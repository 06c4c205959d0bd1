"""The optimizers that are given to DeepSpeed: AdamW, and SGD with or without momentum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from nt_dist.config import Config
from nt_dist.model.trails import weights_of
from nt_dist.model.weights import fan_in_ratio
from nt_dist.parallel.mesh import Mesh
from nt_dist.sparsity.spec import WeightSpec

MODEL_AXES = ("pipe", "trail", "tensor")  # over which the model is cut
_PART = 1 << 12  # entries of a tensor whose squares a CPU may sum in fp32
CLIP_EPS = 1e-6  # added to the norm before clipping by it, as DeepSpeed's ZeRO optimizers do


class Clipped(torch.optim.Optimizer):
    """Clips, and skips a step with non-finite gradients, as DeepSpeed's own optimizers do; before a torch optimizer.

    For fp32 at ZeRO 0, where DeepSpeed steps the client's optimizer directly, keeps no norm and skips no step. The
    engine looks for ``_global_grad_norm`` and ``overflow`` by these names. ``admits`` says of a norm whether the step
    may be taken; the guard replaces it (step_guard.py). Parameters whose ``model_parallel`` is set count in the norm,
    each on one rank. ``clip`` is the largest norm of all gradients together, 0 for no clipping.
    """

    def __init__(self, groups: list[dict], mesh: Mesh, clip: float, **options: Any):
        super().__init__(groups, **options)
        self.mesh, self.clip, self.overflow = mesh, clip, False
        self._global_grad_norm = torch.zeros(())
        self.admits: Callable[[torch.Tensor], bool] = math.isfinite

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step once; ``overflow`` says afterwards whether the step was skipped."""
        assert closure is None
        parameters = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        gradients = [each.grad for each in parameters]
        owned = [each.grad for each in parameters if each.model_parallel]
        self._global_grad_norm = global_norm(owned, self.mesh, MODEL_AXES)
        self.overflow = not self.admits(self._global_grad_norm)
        if self.overflow:
            self._global_grad_norm.fill_(torch.inf)
            return
        if self.clip > 0:
            torch._foreach_mul_(gradients, clip_factor(self._global_grad_norm, self.clip))
        super().step()


class ClippedAdamW(Clipped, torch.optim.AdamW):
    """AdamW for ZeRO 0."""


class ClippedSGD(Clipped, torch.optim.SGD):
    """SGD for ZeRO 0."""


def norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The norm of all tensors together, fp64. Of long ones a CPU sums squares in fp32 one by one, and loses a part of
    them: it is given parts."""
    if tensors[0].device.type == "cpu":
        tensors = [part for each in tensors for part in each.flatten().split(_PART)]
    return torch.stack(torch._foreach_norm(tensors, dtype=torch.float32)).double().norm()


def global_norm(owned: list[torch.Tensor], mesh: Mesh, axes: tuple[str, ...]) -> torch.Tensor:
    """The norm of all gradients, fp32, of which each rank along ``axes`` owns some. No rank waits for its device."""
    squares = norm_of(owned).square() if owned else torch.zeros((), dtype=torch.float64, device=mesh.device)
    return mesh.all_reduce(squares, axes).sqrt().float()


def clip_factor(norm: torch.Tensor | float, clip: float) -> torch.Tensor:
    """Return what clipping at ``clip`` (0: none) multiplies gradients of ``norm`` with: a scalar tensor."""
    norm = torch.as_tensor(norm, dtype=torch.float32)
    return torch.ones_like(norm) if clip == 0 else (clip / (norm + CLIP_EPS)).clamp(max=1.0)


class GroupKey(NamedTuple):
    """What the weights of a parameter group have alike."""

    is_constant: bool  # whether they do not decay, as vectors
    lr_factor: float  # on the step's learning rate
    weight_decay: float
    betas: tuple[float, ...]  # Adam's


def group_key(config: Config, spec: WeightSpec) -> GroupKey:
    """Say to which parameter group a weight belongs.

    Of the weights between the first and the last layer, the trunk's have rates of their own. muP divides those of
    matrices, see :func:`fan_in_ratio`; AdamW's decay follows them, as it follows every rate.
    """
    train, family = config.train, config.family
    of_layer = {family.input_layer: "embedding", family.output_layer: "output"}
    group = of_layer.get(spec.layer, "" if spec.in_trail else "trunk")
    rate, decay, betas = (
        getattr(train, f"{key}_{group}") if group else plain
        for key, plain in (("lr", 1.0), ("weight_decay", 1.0), ("betas", train.betas))
    )
    rate /= fan_in_ratio(config, spec)
    is_constant = spec.is_vector and not train.decay_vectors
    return GroupKey(is_constant, rate, 0.0 if is_constant else train.weight_decay * decay, betas or train.betas)


def parameter_groups(config: Config, model: nn.Module) -> list[dict]:
    """Return the optimizer's groups, as :func:`group_key` has them: matrices, which decay, and vectors, which may.

    Every parameter of the model is in exactly one.
    """
    members: dict[GroupKey, list[nn.Parameter]] = {}
    for weight in weights_of(model).values():
        members.setdefault(group_key(config, weight.spec), []).append(weight.values)
    grouped = [id(parameter) for group in members.values() for parameter in group]
    assert len(grouped) == len(set(grouped)), "a parameter is in two optimizer groups"
    assert set(grouped) == {id(each) for each in model.parameters()}, "a parameter belongs to no weight"
    return [
        {"params": some, "lr_factor": key.lr_factor, "weight_decay": key.weight_decay, "betas": key.betas}
        for key, some in sorted(members.items(), key=lambda group: group[0])
    ]


def make_optimizer(config: Config, model: nn.Module, mesh: Mesh | None) -> torch.optim.Optimizer:
    """Return the optimizer of ``model``; with a mesh, one that clips by itself."""
    train = config.train
    options: dict[str, Any] = {"lr": train.lr, "fused": True}
    if train.optimizer == "adamw":
        kind, clipped = torch.optim.AdamW, ClippedAdamW
        options |= {"betas": train.betas, "eps": train.adam_eps}
    else:
        kind, clipped = torch.optim.SGD, ClippedSGD
        options |= {"momentum": train.momentum, "nesterov": train.nesterov}
    groups = parameter_groups(config, model)
    return clipped(groups, mesh, train.grad_clip, **options) if mesh else kind(groups, **options)
