"""The guard before the optimizer: no step is taken on a loss or gradient that is no number, or on a spike if so chosen.

DeepSpeed's optimizers refuse a step whose gradient norm is not finite: they clear the gradients and leave masters,
moments and Adam's step as they are. The guard stands where that norm is made, and makes it infinite to refuse a step:

    Clipped                        (ZeRO 0)                      asks :meth:`StepGuard.admits` itself
    DeepSpeedZeroOptimizer         (ZeRO 1, 2; bf16 at ZeRO 2)   scaled_global_norm
    BF16_Optimizer                 (bf16 at ZeRO 1)              step
    DeepSpeedZeroOptimizer_Stage3  (ZeRO 3)                      _get_norm_groups

Engine and PipelineEngine both come to it through ``_take_model_step``, with the losses of all micro-batches there. The
verdict is the worst of any rank's, so that all refuse or none.

Here the host waits for its device, once in a step: verdict, norm, losses and what the ranks have to agree on are judged
and gathered there and read in one piece. DeepSpeed is given the norm on the host, where asking whether it is a number
costs no wait.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median
from typing import Any, TypeVar

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from nt_dist.config import Config
from nt_dist.engine.bad_steps import StepVerdict
from nt_dist.engine.optimizers import MODEL_AXES, clip_factor, global_norm
from nt_dist.parallel.mesh import AXES, Mesh

T = TypeVar("T", float, torch.Tensor)

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

    def excess(self, figure: T) -> T:
        """Scales by which ``figure``, a number or a tensor, is above the median; negative below it, 0 as long as the
        window is not full."""
        if len(self) < self.maxlen or not self:
            return figure / math.inf
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
        self.before_wait: Callable[[], Sequence[bool]] = tuple
        """Called once all work of a step before its optimizer's is on its way; it returns flags of this rank."""
        # of the last step, the same on all ranks, and on the host
        self.nll = torch.zeros(())  # sums of token losses, fp32 [trails]
        self.joint_nll: torch.Tensor | None = None  # likewise of the trails' mean, a scalar; None where that is unused
        self.norm = math.inf  # of the gradient before clipping; infinite if it is no number or was not computed
        self.verdict = StepVerdict.GOOD
        self.tokens = torch.ones(())  # real tokens, a scalar
        self.flags: tuple[bool, ...] = ()  # for each of what ``before_wait`` returned, whether any rank has it set
        self._has_joint, self._loss = bool(config.trails.trained_mean), 0.0
        # until a caller says more
        self._tokens = torch.ones((), device=mesh.device)
        self._own_nll = lambda: torch.zeros(1 + self._has_joint, device=mesh.device)
        self._take_model_step = engine._take_model_step
        engine._take_model_step = self._judge_and_step
        _stand_before(engine.optimizer, self.admits, mesh)

    def expect(self, tokens: torch.Tensor, own_nll: Callable[[], torch.Tensor]) -> None:
        """Say what the coming step is about: the real tokens of the global step, a scalar tensor, and what returns,
        after the last backward pass, this rank's sums of token losses, as :meth:`Place.trail_losses` has them."""
        self._tokens, self._own_nll = tokens, own_nll

    def _judge_and_step(self, *arguments: Any) -> None:
        """What the engine calls to step its optimizer after the last micro-batch. Collective."""
        own = self._own_nll()
        trails, joint = own.split([len(own) - self._has_joint, self._has_joint])
        self._sums = self.mesh.all_reduce(torch.cat([self.place.all_trails(trails), joint]), ("pipe", "data"))
        self._take_model_step(*arguments)
        if not self.engine.optimizer.overflow:
            self.losses.append(self._loss)
            self.norms.append(self._log_norm)

    @torch.no_grad()
    def admits(self, norm: torch.Tensor) -> bool:
        """Judge the step by its loss and by the norm of its gradient, a scalar; say whether it may be taken.
        Collective, and the step's one wait."""
        count = len(self._sums) - self._has_joint
        loss = (self._sums[:count] / self._tokens).mean().double()
        log_norm = norm.double().clamp(min=1e-30).log()  # it varies by factors: its logarithm is what has a spread
        verdict = self._own_verdict(loss, log_norm)
        own = torch.stack([verdict, *(torch.full_like(verdict, float(flag)) for flag in self.before_wait())])
        agreed = self.mesh.all_reduce(own, op="max")
        figures = torch.stack([loss, norm.double(), log_norm, self._tokens.double()])
        agreed, figures, sums = _read(agreed, figures, self._sums)
        self._loss, self.norm, self._log_norm, tokens = figures
        self.norm = self.norm if math.isfinite(self.norm) else math.inf
        self.tokens, self.nll = torch.tensor(tokens), torch.tensor(sums[:count])
        self.joint_nll = torch.tensor(sums[-1]) if self._has_joint else None
        self.verdict, self.flags = StepVerdict(int(agreed[0])), tuple(map(bool, agreed[1:]))
        return self.verdict is StepVerdict.GOOD or (self.verdict.is_spike and not self.refuses_spikes)

    def _own_verdict(self, loss: torch.Tensor, log_norm: torch.Tensor) -> torch.Tensor:
        found = {  # the worst last
            StepVerdict.NORM_SPIKE: self.norms.excess(log_norm) > self.sigma,
            StepVerdict.LOSS_SPIKE: self.losses.excess(loss) > self.sigma,
            StepVerdict.NORM_NOT_FINITE: ~log_norm.isfinite(),
            StepVerdict.LOSS_NOT_FINITE: ~loss.isfinite(),
        }
        verdict = torch.zeros_like(loss)
        for what, holds in found.items():
            verdict.masked_fill_(holds, float(what))
        return verdict

    def state(self) -> dict[str, list[float]]:
        """What it judges by, for a checkpoint."""
        return {"losses": list(self.losses), "log_norms": list(self.norms)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Judge by what a checkpoint has; where it has nothing, the windows fill anew."""
        self.losses.restore(state.get("losses", []))
        self.norms.restore(state.get("log_norms", []))


def _read(*tensors: torch.Tensor) -> list[list[float]]:
    """Read vectors from their device, waiting once for all of them."""
    figures = iter(torch.cat([each.double() for each in tensors]).tolist())
    return [list(islice(figures, len(each))) for each in tensors]


def _stand_before(optimizer: Any, admits: Callable[[torch.Tensor], bool], mesh: Mesh) -> None:
    """Let ``admits`` decide, given the global norm, whether a DeepSpeed optimizer steps."""
    guard: StepGuard = admits.__self__

    def judged(owned: list[torch.Tensor]) -> torch.Tensor:
        """The norm as DeepSpeed is given it: on the host."""
        return torch.tensor(guard.norm if admits(global_norm(owned, mesh, AXES)) else math.inf)

    if isinstance(optimizer, DeepSpeedZeroOptimizer):

        def scaled_global_norm(*arguments: Any) -> torch.Tensor:
            # It fills a partition's end with zeros; one that no parameter reaches has them alone.
            owned: list[torch.Tensor] = []
            for group, parameters in enumerate(optimizer.params_in_partition):
                gradients = optimizer.averaged_gradients[group]
                real = [each for each in gradients if not getattr(each, "_zero_padding", False)]
                owned += [each for each, of in zip(real, parameters, strict=False) if of.model_parallel]
            return judged(owned)

        optimizer.scaled_global_norm = scaled_global_norm
        optimizer.check_overflow = lambda *arguments, **named: None  # another look at all gradients, and a wait
    elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):

        def _get_norm_groups() -> list[torch.Tensor]:
            owned: list[torch.Tensor] = []
            for group, parameters in enumerate(optimizer.fp16_groups):
                pairs = zip(optimizer.averaged_gradients[group], parameters, strict=True)
                owned += [each for each, of in pairs if of.model_parallel]
            return [judged(owned)]

        optimizer._get_norm_groups = _get_norm_groups
    elif isinstance(optimizer, BF16_Optimizer):

        @torch.no_grad()
        def step(closure: None = None) -> None:
            """DeepSpeed's, which asks its device three times whether the norm is a number and whether to clip."""
            owned, _ = optimizer.get_grads_for_norm()
            norm = global_norm(owned, mesh, MODEL_AXES)
            optimizer.overflow = not admits(norm)
            optimizer._global_grad_norm = math.inf if optimizer.overflow else norm
            if optimizer.overflow:
                optimizer.clear_lp_grads()
            else:
                if optimizer.clip_grad > 0:
                    gradients = optimizer.get_grads_for_norm(for_clipping=True)
                    torch._foreach_mul_(gradients, clip_factor(norm, optimizer.clip_grad))
                masters = optimizer.fp32_groups_flat_partition
                for master, gradient in zip(masters, optimizer.fp32_groups_gradient_flat_partition, strict=True):
                    master.grad = gradient
                optimizer.optimizer.step()
                optimizer._lazy_init_hp_params_optimizer_state()
                optimizer.update_lp_params()
            optimizer.clear_hp_grads()

        optimizer.step = step
    else:
        optimizer.admits = admits  # Clipped
