"""Pipeline parallelism: the model's list of layers cut into stages for DeepSpeed's PipelineModule (docs/design.md §6).

Between stages travels one tensor, the hidden state [T, B, S, H]; before the fork T = 1, and B may be this rank's share
of a micro-batch. The first stage reads tokens [B, S] and the last computes the loss. Training is DeepSpeed's 1F1B
schedule; an evaluation is a forward pass of its own from stage to stage, since DeepSpeed's keeps only the last
micro-batch's logits.
"""

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from nt_dist.config.settings import Config
from nt_dist.data.loader import Batch
from nt_dist.engine.stages import stage_bounds
from nt_dist.model.chunks import Labels
from nt_dist.model.losses import objective
from nt_dist.model.place import Place
from nt_dist.model.trails import (
    FORK,
    TrailsModel,
    build_model,
    layer_makers,
    layer_names,
    num_local_trails,
    run_layers,
    sums_of_losses,
    weights_of,
)
from nt_dist.parallel.mesh import Mesh

# DeepSpeed would slice hidden states over its whole model axis, as if they were equal there; trails are not.
SETTINGS = {"pipe_partitioned": False, "grad_partitioned": False}

BeforeBackward = Callable[[int], None]


class _Layer(LayerSpec):
    """A layer that DeepSpeed makes on the stage that holds it."""

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__(nn.Module)
        self.make = make

    def build(self, log: bool = False) -> nn.Module:
        return self.make()


class PipelineModel(PipelineModule):
    """The layers of one stage, of which ``place`` says the part that is held here."""

    def __init__(self, config: Config, mesh: Mesh, place: Place):
        makers = [_Layer(make) for make in layer_makers(config, place, mesh.device)]
        degrees = {"num_pp": mesh.pipe.degree, "num_mp": mesh.trail.degree * mesh.tensor.degree}
        topology = PipeModelDataParallelTopology(num_dp=mesh.data.degree, **degrees)
        bounds = stage_bounds(config)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its seeds and its topology
            super().__init__(makers, topology=topology, loss_fn=lambda loss, labels: loss, partition_method=bounds)
        self.mesh, self.place = mesh, place
        self.recompute = config.train.activation_checkpointing
        self.hidden_size = config.family.hidden_size(config)
        self.dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        self.num_trails = num_local_trails(config, place)
        self.receives_trunk = FORK in layer_names(config)[bounds[mesh.pipe.rank] :]
        self.how = config.trails.trained_mean, config.train.label_smoothing
        self._scale: torch.Tensor | float = 1.0
        # this step's sums so far, as Place.trail_losses has them, on the last stage; else 0
        self.nll = torch.zeros(self.num_trails + bool(config.trails.trained_mean), device=mesh.device)
        self._passes = itertools.count()
        self._labels: list[Labels] = []  # of this step's micro-batches
        self._before_backward: BeforeBackward = lambda number: None

    def _partition_layers(self, method: list[int]) -> None:
        """Cut where :func:`stage_bounds` says, which DeepSpeed hands through as its ``partition_method``."""
        self.parts = method
        self._set_bounds(*method[self.stage_id : self.stage_id + 2])

    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        """Run this stage (training), or all stages up to this one (evaluation, a collective of the pipe axis).

        In training x is what this stage reads, tokens [B, S] on the first and else a hidden state, and the result a
        hidden state, on the last stage the loss. In evaluation x are the tokens on every stage, and the result is None
        but on the last, where it is logits [T, B, S, V].
        """
        if not self.training:
            return self._through_all_stages(x)
        number = next(self._passes)
        if self.mesh.pipe.rank == self.mesh.pipe.degree - 1:
            self._before_backward(number)  # gradients may be made with the loss, and this pass's way back is next
            return self._loss(x, self._labels[number])
        x = run_layers(self.forward_funcs, x, self.recompute).contiguous()
        x.register_hook(lambda gradient: self._before_backward(number))  # fires before any of this pass's gradients
        return x

    @torch.no_grad()
    def _through_all_stages(self, tokens: torch.Tensor) -> torch.Tensor | None:
        axis, x = self.mesh.pipe, tokens
        if axis.rank > 0:
            # before the fork all trails are one
            trails, like = (1, self.place.into_trunk(tokens)) if self.receives_trunk else (self.num_trails, tokens)
            shape = trails, len(like), self.place.positions_held(like.shape[1]), self.hidden_size
            x = torch.empty(shape, dtype=self.dtype, device=self.mesh.device)
            dist.recv(x, group=axis.group, group_src=axis.rank - 1)
        x = run_layers(self.forward_funcs, x, recompute=False)
        if axis.rank == axis.degree - 1:
            return x
        dist.send(x.contiguous(), group=axis.group, group_dst=axis.rank + 1)
        return None

    def _loss(self, x: torch.Tensor, labels: Labels) -> torch.Tensor:
        """Within :meth:`forward`: DeepSpeed clears bf16 gradients when it comes, on its way back, to what that gave."""
        *layers, last = self.forward_funcs
        x = run_layers(layers, x, self.recompute)
        sums = sums_of_losses(last, x, self.place, labels, *self.how)
        self.nll += sums.detach()
        return objective(sums, self._joint) * self._scale

    def train_step(
        self,
        engine: PipelineEngine,
        micro_batches: Sequence[Batch],
        scale: torch.Tensor,
        joint: float | None,
        before_backward: BeforeBackward,
    ) -> None:
        """Pass a data rank's micro-batches through all stages and back, and step the optimizer. Collective.

        ``scale`` multiplies each one's objective, in which ``joint`` weighs the ensemble's loss; ``before_backward`` is
        called with its number before its backward pass on this stage.
        """
        self._scale, self._joint = scale, joint
        self._passes, self._before_backward = itertools.count(), before_backward
        self._labels = [(targets, weights) for _, targets, weights in micro_batches]
        self.nll = torch.zeros_like(self.nll)
        engine.train_batch((tokens, (targets, weights)) for tokens, targets, weights in micro_batches)
        for kept in engine.pipe_buffers.values():  # hidden states of the last micro-batches among them
            kept[:] = [None] * len(kept)


def build_mesh_model(config: Config, mesh: Mesh) -> TrailsModel | PipelineModel:
    """Build the part of the model that this rank of ``mesh`` holds and draw its initial state."""
    place = mesh.place
    if mesh.pipe.degree == 1:
        return build_model(config, place, mesh.device)
    model = PipelineModel(config, mesh, place)
    for weight in weights_of(model).values():
        weight.reset(config.train.seed)
    return model
