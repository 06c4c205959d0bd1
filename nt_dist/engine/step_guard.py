"""The guard before the optimizer: no step is taken on a loss or gradient that is no number, or on a spike if so chosen.

DeepSpeed's optimizers refuse a step whose gradient norm is not finite: they clear the gradients and leave masters,
moments and Adam's step as they are. The guard stands where that norm is made, and makes it infinite to refuse a step:

    Clipped                        (ZeRO 0)                      asks :meth:`StepGuard.admits` itself
    DeepSpeedZeroOptimizer         (ZeRO 1, 2; bf16 at ZeRO 2)   scaled_global_norm
    BF16_Optimizer                 (bf16 at ZeRO 1)              get_grads_for_norm
    DeepSpeedZeroOptimizer_Stage3  (ZeRO 3)                      _get_norm_groups

Engine and PipelineEngine both come to it through ``_take_model_step``, with the losses of all micro-batches there. The
verdict is the worst of any rank's, so that all refuse or none.
"""

import math
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from nt_dist.config import Config
from nt_dist.engine.bad_steps import StepVerdict
from nt_dist.engine.optimizers import norm_of
from nt_dist.parallel.mesh import Mesh

LOSS_FLOOR = 0.1  # nats: about what the losses of neighbouring batches differ by
NORM_FLOOR = 0.1  # of the norm's logarithm: a tenth of the norm
NORMAL = 1.4826


class RecentValues(deque[float]):
    """The last ``maxlen`` figures of a series, and how far another one stands above them.

    Location is the median and scale the median absolute deviation, times 1.4826: for normal figures their standard
    deviation (Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation", JASA 1993, equation 1.1), but not
    carried off by the very spikes to be found. ``floor`` is the smallest scale taken: a ripple is no spike.
    """

    def __init__(self, window: int, floor: float):
        super().__init__(maxlen=window)
        self.floor = floor

    def excess(self, figure: float) -> float:
        """Scales by which ``figure`` is above the median; negative below it, 0 as long as the window is not full."""
        if len(self) < self.maxlen or not self:
            return 0.0
        middle = median(self)
        scale = NORMAL * median(abs(each - middle) for each in self)
        return (figure - middle) / max(scale, self.floor)

    def restore(self, figures: list[float]) -> None:
        """Have ``figures`` in place of what was kept: the last of them, if there are more than the window takes."""
        self.clear()
        self.extend(figures)


class StepGuard:
    """Judges each optimizer step of one engine before it is taken; every rank has one."""

    def __init__(self, config: Config, mesh: Mesh, engine: Any):
        train = config.train
        self.mesh, self.place, self.engine = mesh, mesh.place, engine
        self.sigma, self.refuses_spikes = train.spike_sigma, train.on_spike in ("skip", "rollback")
        window = train.spike_window if train.on_spike != "off" else 0
        self.losses, self.norms = RecentValues(window, LOSS_FLOOR), RecentValues(window, NORM_FLOOR)
        # of the last step, the same on all ranks
        self.nll = torch.zeros(())  # sums of token losses, fp32 [trails]
        self.joint_nll: torch.Tensor | None = None  # likewise of the trails' mean, a scalar; None where that is unused
        self.norm = math.inf  # of the gradient before clipping; infinite if it is no number or was not computed
        self.verdict = StepVerdict.GOOD
        self._has_joint, self._loss = bool(config.trails.trained_mean), 0.0
        self._tokens: torch.Tensor | float = 1.0
        self._own_nll: Callable[[], torch.Tensor] | None = None
        self._take_model_step = engine._take_model_step
        engine._take_model_step = self._judge_and_step
        _stand_before(engine.optimizer, self.admits)

    def expect(self, tokens: torch.Tensor, own_nll: Callable[[], torch.Tensor]) -> None:
        """Say what the coming step is about: the real tokens of the global step, a scalar tensor, and what returns,
        after the last backward pass, this rank's sums of token losses, as :meth:`Place.trail_losses` has them."""
        self._tokens, self._own_nll = tokens, own_nll

    def _judge_and_step(self, *arguments: Any) -> None:
        """What the engine calls to step its optimizer after the last micro-batch. Collective."""
        self.verdict, self.norm = StepVerdict.GOOD, math.inf
        if self._own_nll is not None:  # a caller that steps the engine by hand has no losses to judge
            own = self._own_nll()
            trails, joint = own.split([len(own) - self._has_joint, self._has_joint])
            sums = self.mesh.all_reduce(torch.cat([self.place.all_trails(trails), joint]), ("pipe", "data"))
            self.nll, joint = sums.split([len(sums) - self._has_joint, self._has_joint])
            self.joint_nll = joint[0] if self._has_joint else None
            self._loss = float((self.nll / self._tokens).mean())
        self._take_model_step(*arguments)
        if not self.engine.optimizer.overflow:
            self.losses.append(self._loss)
            self.norms.append(_log(self.norm))
        elif self.verdict is StepVerdict.GOOD:  # DeepSpeed saw it before any norm
            self.verdict = StepVerdict.NORM_NOT_FINITE if math.isfinite(self._loss) else StepVerdict.LOSS_NOT_FINITE

    def admits(self, norm: torch.Tensor) -> bool:
        """Judge the step by its loss and by the norm of its gradient; say whether it may be taken. Collective."""
        norm = float(norm)
        self.norm = norm if math.isfinite(norm) and norm >= 0 else math.inf  # DeepSpeed's -1 is no number either
        own = torch.tensor(int(self._own_verdict()), device=self.mesh.device)
        self.verdict = StepVerdict(int(self.mesh.all_reduce(own, op="max")))
        return self.verdict is StepVerdict.GOOD or (self.verdict.is_spike and not self.refuses_spikes)

    def _own_verdict(self) -> StepVerdict:
        if not math.isfinite(self._loss):
            return StepVerdict.LOSS_NOT_FINITE
        if not math.isfinite(self.norm):
            return StepVerdict.NORM_NOT_FINITE
        if self.losses.excess(self._loss) > self.sigma:
            return StepVerdict.LOSS_SPIKE
        if self.norms.excess(_log(self.norm)) > self.sigma:
            return StepVerdict.NORM_SPIKE
        return StepVerdict.GOOD

    def state(self) -> dict[str, list[float]]:
        """What it judges by, for a checkpoint."""
        return {"losses": list(self.losses), "log_norms": list(self.norms)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Judge by what a checkpoint has; where it has nothing, the windows fill anew."""
        self.losses.restore(state.get("losses", []))
        self.norms.restore(state.get("log_norms", []))


def _log(norm: float) -> float:
    """A norm varies by factors, so that its logarithm is what has a spread."""
    return math.log(max(norm, 1e-30))


def _stand_before(optimizer: Any, admits: Callable[[torch.Tensor], bool]) -> None:
    """Let ``admits`` decide, given the global norm, whether a DeepSpeed optimizer steps."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer):

        def scaled_global_norm(*arguments: Any) -> torch.Tensor:
            # One norm of all groups: DeepSpeed sums one for each over all stages of a pipeline, whose groups differ.
            # It fills a partition's end with zeros; one that no parameter reaches has them alone.
            pairs: list[tuple] = []
            for group, parameters in enumerate(optimizer.params_in_partition):
                gradients = optimizer.averaged_gradients[group]
                real = [each for each in gradients if not getattr(each, "_zero_padding", False)]
                pairs += zip(real, parameters, strict=False)
            gradients, parameters = zip(*pairs, strict=True) if pairs else ((), ())
            norm = combine_grad_norm_groups([optimizer.get_grad_norm_direct(gradients, parameters)])
            return norm if admits(norm) else torch.full_like(norm, torch.inf)

        optimizer.scaled_global_norm = scaled_global_norm
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        norms_of_groups = optimizer._get_norm_groups

        def _get_norm_groups() -> list[torch.Tensor]:
            norm = combine_grad_norm_groups(norms := norms_of_groups())
            return norms if admits(norm) else [torch.full_like(norm, torch.inf)]

        optimizer._get_norm_groups = _get_norm_groups
    elif isinstance(optimizer, BF16_Optimizer):
        gradients_of = optimizer.get_grads_for_norm

        def get_grads_for_norm(for_clipping: bool = False):
            gradients = gradients_of(for_clipping)
            if for_clipping:
                return gradients
            # One number in place of all gradients, for DeepSpeed takes the norm of them once more; and of none, where
            # other ranks own all that this one holds, it fails.
            zero = optimizer.fp32_groups_gradients_flat[0].new_zeros(1, dtype=torch.float32)
            norm = norm_of(gradients[0]).float().view(1) if gradients[0] else zero
            admitted = admits(get_global_norm_of_tensors([norm], optimizer.norm_type, optimizer.mpu))
            return [norm if admitted else torch.full_like(norm, torch.inf)], gradients[1]

        optimizer.get_grads_for_norm = get_grads_for_norm
    else:
        optimizer.admits = admits  # Clipped
