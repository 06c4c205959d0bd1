"""The DeepSpeed engine and one optimizer step with it.

T trails, B sequences of a micro-batch on this rank, S tokens of a sequence, D data ranks, A micro-batches of a step.
"""

import contextlib
import copy
import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

from nt_dist.config import Config
from nt_dist.data.loader import Batch
from nt_dist.engine import pipeline
from nt_dist.engine.bad_steps import StepVerdict
from nt_dist.engine.optimizers import Clipped, make_optimizer
from nt_dist.engine.statistics import update_statistics
from nt_dist.engine.step_guard import StepGuard
from nt_dist.model.losses import objective
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.parallel.mesh import Mesh


@dataclass(frozen=True)
class StepResult:
    """What a step did, over all ranks; its tensors are on the host."""

    nll: torch.Tensor  # each trail's sum of token losses, fp32 [T]
    tokens: torch.Tensor  # real tokens (sum of weights), a scalar
    grad_norm: float  # of all gradients before clipping; infinite if it is no number
    applied: bool  # whether the parameters were changed
    verdict: StepVerdict  # what the guard says of the step
    learning_rate: float  # before the factors of groups of parameters
    objective_scale: float = 1.0  # of the sum over trails, in what is minimised
    joint_nll: torch.Tensor | None = None  # likewise of the trails' mean; None where it is not trained on
    joint: float = 0.0  # the weight of its mean beside the sum over trails

    @property
    def loss_per_trail(self) -> list[float]:
        """Each trail's mean token loss in nats."""
        return (self.nll / self.tokens).tolist()

    @property
    def loss(self) -> float:
        """Mean over trails, comparable with a single model."""
        return float((self.nll / self.tokens).mean())

    @property
    def joint_loss(self) -> float | None:
        """The ensemble's own mean token loss, by ``trails.joint_mean``."""
        return None if self.joint_nll is None else float(self.joint_nll / self.tokens)

    @property
    def objective(self) -> float:
        """What is minimised: the sum over trails, or their mean, and the ensemble's own loss by its weight."""
        trails = float((self.nll / self.tokens).sum())
        return self.objective_scale * (trails + self.joint * (self.joint_loss or 0.0))


def learning_rate(config: Config, step: int) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 1.

    Linear warm-up to ``train.lr`` at ``train.warmup_steps``; then a cosine down to ``train.min_lr_ratio`` of it at
    ``train.steps``, or steps: times ``train.lr_decay`` after each of the milestones; or constant, and in the last
    ``train.decay_share`` of all steps linear to the same end (WSD, as in Hägele et al., arXiv 2405.18392).
    """
    train = config.train
    if step < train.warmup_steps:
        return train.lr * step / train.warmup_steps
    if train.lr_schedule == "steps":
        return train.lr * train.lr_decay ** sum(step > share * train.steps for share in train.milestones)
    if train.lr_schedule == "wsd":
        left = min(max(train.steps - step, 0) / (train.decay_share * train.steps), 1.0)
        return train.lr * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * left)
    done = min((step - train.warmup_steps) / max(train.steps - train.warmup_steps, 1), 1.0)
    return train.lr * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * done)))


def build_engine(config: Config, model: nn.Module, mesh: Mesh) -> deepspeed.DeepSpeedEngine:
    """Give ``model`` to DeepSpeed with its optimizer, at the ZeRO stage and precision of ``config``."""
    train, settings, place = config.train, copy.deepcopy(config.deepspeed), mesh.place
    if train.compile:
        model.compile_losses()
    place.mark_owned(model)
    place.join_gradients(model)
    optimizer = make_optimizer(config, model, mesh if config.zero_stage == 0 else None)
    if config.zero_stage == 0:
        assert train.precision == "fp32", "DeepSpeed accumulates no fp32 gradients in bf16 at ZeRO 0"
        settings["gradient_clipping"] = 0.0  # the optimizer does it
    if train.optimizer == "sgd":
        settings["zero_allow_untested_optimizer"] = True  # tests/distributed/test_optimizer_state.py tests it
    if train.precision == "bf16":  # else gradients accumulated in fp32 are rounded to bf16 to be summed over ranks
        settings.setdefault("communication_data_type", "fp32")
    settings["timers"] = {"throughput": {"enabled": False}}  # it would wait for the device in every micro-batch
    if mesh.pipe.degree > 1:
        settings["pipeline"] = dict(pipeline.SETTINGS)
    # Without an mpu all ranks are data ranks; a pipeline has its own.
    mpu = _model_parallel_unit(mesh) if mesh.model.degree > 1 and mesh.pipe.degree == 1 else None
    with contextlib.redirect_stdout(io.StringIO()):  # BF16_Optimizer prints how much memory it uses
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, mpu=mpu, dist_init_required=False
        )
    engine.moments = train.moments
    engine.step_guard = StepGuard(config, mesh, engine)
    engine.sparse_weights = [each for each in weights_of(model).values() if each.spec.is_sparse]
    engine.statistics = list(statistics_of(model).values())
    if mesh.data.degree == 1 and isinstance(engine.optimizer, Clipped | BF16_Optimizer):
        # It would copy all gradients to sum them over one rank.
        engine.enable_backward_allreduce = engine.pipeline_enable_backward_allreduce = False
    return engine


def release(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let go of an engine whose owners are about to, of what holds it where Python's collector does not look."""
    engine.destroy()  # hooks on gradients
    vars(engine).pop("loss", None)  # a pipeline's last, with its graph
    FWD_MODULE_STACK.clear()  # in which ZeRO 3 leaves its model, as in the cache below
    (cached,) = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release.__closure__
    cached.cell_contents.cache_clear()


def _model_parallel_unit(mesh: Mesh) -> SimpleNamespace:
    """What DeepSpeed asks about the mesh, by Megatron's names: its model axis is trail × tensor.

    The names for tensor parallelism are left out, so that DeepSpeed takes the whole model axis where it asks which
    gradients are counted once.
    """
    unit = SimpleNamespace()
    for name, axis in (("model", mesh.model), ("data", mesh.data)):
        for what, value in (("rank", axis.rank), ("world_size", axis.degree), ("group", axis.group)):
            setattr(unit, f"get_{name}_parallel_{what}", functools.partial(lambda value: value, value))
    return unit


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    config: Config,
    mesh: Mesh,
    micro_batches: Sequence[Batch],
    step: int,
    collect: bool = False,
) -> StepResult:
    """Do one optimizer step: forward and backward over the micro-batches, all-reduce, guard, clip, step.

    The objective is the sum (or mean) over trails, and by ``trails.joint`` the ensemble, of the mean loss over all real
    tokens of it (docs/design.md §5), so that padding, micro-batch size and data degree do not change it. DeepSpeed
    averages over D and A; the loss given to it is scaled by both.

    ``micro_batches`` are this rank's A, ``step`` counts from 1, and with ``collect`` the sparse weights keep their
    dense gradients, for a topology update after this step.
    """
    assert len(micro_batches) == config.accumulation_steps, f"{len(micro_batches)} micro-batches"
    rate, joint = learning_rate(config, step), config.joint_weight(step)
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
    if not engine.module.training:  # setting it walks through all modules
        engine.train()
    micro_batches = [batch.to(mesh.device) for batch in micro_batches]
    tokens = mesh.all_reduce(torch.stack([batch.weights.sum() for batch in micro_batches]).sum(), ("data",))
    objective_scale = 1.0 / config.trails.count if config.train.objective == "mean" else 1.0
    scale = objective_scale * mesh.data.degree * len(micro_batches) / tokens
    collecting = engine.sparse_weights if collect else []

    def before_backward(number: int) -> None:
        is_last = number == len(micro_batches) - 1
        for weight in collecting:
            weight.collecting = is_last or config.sparsity.regrow_from == "all"

    guard: StepGuard = engine.step_guard
    for weight in engine.sparse_weights:
        weight.keep_built(config.train.keep_dense)
    if mesh.pipe.degree > 1:
        guard.expect(tokens, lambda: engine.module.nll)
        engine.module.train_step(engine, micro_batches, scale, joint, before_backward)
    else:
        nll: list[torch.Tensor] = []  # of each micro-batch
        guard.expect(tokens, lambda: sum(nll))
        for number, batch in enumerate(micro_batches):
            before_backward(number)
            sums = engine(*batch)
            nll.append(sums.detach())
            engine.backward(objective(sums, joint) * scale)
            engine.step()  # steps the optimizer after the last micro-batch only
    for weight in engine.sparse_weights:
        weight.collecting = False
        weight.keep_built(False)
    applied = engine.was_step_applied()
    update_statistics(engine.statistics, mesh, applied)
    judged = guard.nll, guard.tokens, guard.norm, applied, guard.verdict
    return StepResult(*judged, rate, objective_scale, guard.joint_nll, joint or 0.0)
