"""The model cut over the mesh: tensor parallelism (Shoeybi et al., arXiv 1909.08053, §3) and trail parallelism
(docs/design.md §6).

The layers are the single-device ones; what differs is which trails and shards a rank holds, and what happens at the
spots where parts meet. Conjugate collectives: what is the identity forward sums its gradient backward, and the other
way round.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nt_dist.model.layers import Linear, products
from nt_dist.model.place import Place
from nt_dist.model.trails import weights_of
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.statistic import LocalState

_POSITIONS = 2  # their dimension in a hidden state [T, B, S, H]


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh, as this rank sees it: the ranks that differ from it in this axis alone."""

    name: str
    rank: int
    degree: int
    group: dist.ProcessGroup | None


def part_of(count: int, axis: Axis) -> range:
    """Return this rank's equal share of ``count`` things that are dealt out along ``axis``, in order."""
    assert count % axis.degree == 0, f"{count} things over {axis.degree} {axis.name} ranks"
    share = count // axis.degree
    return range(axis.rank * share, (axis.rank + 1) * share)


@dataclass(frozen=True)
class MeshPlace(Place):
    """The part of the model that one rank of ``mesh`` holds; :class:`Place` says what each method is for.

    All ranks of the trail axis hold the whole trunk. Where ``mesh.splits_trunk``, each computes it for its share of the
    sequences of a micro-batch.
    """

    mesh: Any  # the nt_dist.parallel.mesh.Mesh whose ``place`` this is

    def trails(self, spec: WeightSpec) -> range:
        """Deal out the trails' weights over the trail axis; all hold the trunk's."""
        return part_of(spec.trails, self.mesh.trail) if spec.in_trail else range(spec.trails)

    def shards(self, spec: WeightSpec) -> range:
        """Deal out the topology shards over the tensor axis; all hold what is not cut."""
        return part_of(spec.shards, self.mesh.tensor) if spec.shards > 1 else range(1)

    def into_columns(self, x: torch.Tensor) -> torch.Tensor:
        """Identity, or the shares gathered; the gradient is summed over the tensor axis."""
        if self.mesh.cuts_sequence:
            return _Gathered.apply(x, self.mesh.tensor, _POSITIONS)
        return _copied_to(x, self.mesh.tensor)

    def columns(self, x: torch.Tensor, *matrices: Linear) -> list[torch.Tensor]:
        """Of gathered shares: what the products keep of them for backward is gathered again there."""
        if not self.mesh.gathers_again:
            return super().columns(x, *matrices)
        whole = matrices[0].lay_out(self.into_columns(x))
        again = _GatheredAgain(whole, x, self.mesh.tensor, matrices[0])
        with torch.autograd.graph.saved_tensors_hooks(again.pack, again.unpack):
            return products(whole, *matrices)

    def positions_held(self, count: int) -> int:
        """All, or this rank's equal share of them."""
        return count // self.mesh.tensor.degree if self.mesh.cuts_sequence else count

    def out_of_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor axis, of which each rank has all or its share of the positions; the gradient passes."""
        if self.mesh.cuts_sequence:
            return _Scattered.apply(x, self.mesh.tensor, _POSITIONS)
        return _summed(x.contiguous(), self.mesh.tensor) if self.mesh.tensor.degree > 1 else x

    def into_trunk(self, tokens: torch.Tensor) -> torch.Tensor:
        """All of a micro-batch, or this rank's equal share of it."""
        if not self.mesh.splits_trunk:
            return tokens
        share = part_of(len(tokens), self.mesh.trail)
        return tokens[share.start : share.stop]

    def fork(self, x: torch.Tensor) -> torch.Tensor:
        """Identity, or the shares gathered; the gradients of all trails are summed over the trail axis."""
        if not self.mesh.splits_trunk:
            return _copied_to(x, self.mesh.trail)
        return _Gathered.apply(x[0], self.mesh.trail, 0)[None]

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropies with the classes cut over the tensor axis; see :class:`Place`."""
        return super().token_losses(logits, targets - self.mesh.tensor.rank * logits.shape[-1], smoothing)

    def all_trails(self, figures: torch.Tensor) -> torch.Tensor:
        """Gather over the trail axis."""
        axis = self.mesh.trail
        if axis.degree == 1:
            return figures
        parts = [torch.empty_like(figures) for _ in range(axis.degree)]
        dist.all_gather(parts, figures.detach().contiguous(), group=axis.group)
        return torch.cat(parts)

    def mean_of_trails(self, figures: torch.Tensor) -> torch.Tensor:
        """Mean over the trails held here, then over the trail axis, whose ranks hold equally many."""
        mean, axis = super().mean_of_trails(figures), self.mesh.trail
        return _summed(mean, axis) / axis.degree if axis.degree > 1 else mean

    def min_over_trails(self, figures: torch.Tensor) -> torch.Tensor:
        """Minimum over the trail axis, in place."""
        return self.mesh.all_reduce(figures, ("trail",), op="min")

    def highest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The highest over the tensor axis; the first of several that are equal."""
        classes = logits.shape[-1]
        value, index = logits.max(-1)
        highest = self.max_over_classes(value.clone())
        index += self.mesh.tensor.rank * classes
        index.masked_fill_(value != highest, self.mesh.tensor.degree * classes)
        return highest, self.mesh.all_reduce(index, ("tensor",), op="min")

    def max_over_classes(self, figures: torch.Tensor) -> torch.Tensor:
        """Maximum over the tensor axis, in place."""
        return self.mesh.all_reduce(figures, ("tensor",), op="max")

    def sum_over_classes(self, figures: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor axis, in place."""
        return self.mesh.all_reduce(figures, ("tensor",))

    def log_sum_exp(self, logits: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor axis, of exponentials below the highest logit of all."""
        if self.mesh.tensor.degree == 1:
            return super().log_sum_exp(logits)
        highest = self.max_over_classes(logits.amax(-1))
        return self.sum_over_classes((logits - highest[..., None]).exp_().sum(-1)).log_().add_(highest)

    def at(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """From the rank of the tensor axis that holds the class."""
        local = classes - self.mesh.tensor.rank * logits.shape[-1]
        here = (local >= 0) & (local < logits.shape[-1])
        values = super().at(logits, local.masked_fill(~here, 0))
        return self.sum_over_classes(values.masked_fill_(~here, 0.0))

    def replica_axes(self, weight: LocalState) -> tuple[str, ...]:
        """Return the axes of the model, trail and tensor, along which other ranks hold copies of ``weight``."""
        over_trails = self.mesh.trail.degree > 1 and not weight.spec.in_trail
        over_shards = self.mesh.tensor.degree > 1 and weight.spec.shards == 1
        return ("trail",) * over_trails + ("tensor",) * over_shards

    def owns(self, weight: LocalState) -> bool:
        """Say whether this rank is the one whose copy of ``weight`` counts: in norms, sums and checkpoints."""
        return all(getattr(self.mesh, axis).rank == 0 for axis in self.replica_axes(weight))

    def mark_owned(self, model: nn.Module) -> None:
        """Tell DeepSpeed which parameters count in this rank's part of the gradient norm."""
        for weight in weights_of(model).values():
            weight.values.model_parallel = self.owns(weight)

    def join_gradients(self, model: nn.Module) -> None:
        """Make the gradients of weights of which several ranks of the model hold copies the same to the bit.

        Where each rank has the gradient of its own sequences or positions, it is their sum. Otherwise backward passes
        on GPUs may differ by a bit: of the trunk, the first trail rank's is taken, since a mean would round, in bf16 by
        more than the copies differ.
        """
        of_trunk = self.mesh.all_reduce if self.mesh.splits_trunk else self.mesh.broadcast
        for weight in weights_of(model).values():
            axes = self.replica_axes(weight)
            if "trail" in axes:
                weight.values.register_hook(_joined(of_trunk, "trail"))
            if "tensor" in axes and self.mesh.cuts_sequence:
                weight.values.register_hook(_joined(self.mesh.all_reduce, "tensor"))


def _joined(join: Callable[..., torch.Tensor], axis: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: join(gradient.clone(memory_format=torch.contiguous_format), (axis,))


@functools.cache
def _mappings() -> ModuleType:
    """megatron-core's autograd collectives, imported only where a model is cut: it takes seconds and warns a lot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.tensor_parallel import mappings
    return mappings


class _ContiguousGradient(torch.autograd.Function):
    """Identity, with a contiguous gradient: megatron-core reduces a copy of any other, and drops it."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.contiguous()


def _copied_to(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    if axis.degree == 1:
        return x
    return _ContiguousGradient.apply(_mappings().copy_to_tensor_model_parallel_region(x, axis.group))


def _summed(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The sum over ``axis``, in place of ``x``; backward each rank has the gradient of its own sum."""
    return _mappings().reduce_from_tensor_model_parallel_region(x, axis.group)


def _gather(share: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """All ranks' shares, one after the other along ``dim``; megatron-core's makes its result on a GPU."""
    parts = share.new_empty(axis.degree, *share.shape)
    dist.all_gather_into_tensor(parts.flatten(0, 1), share.contiguous(), group=axis.group)
    return parts.movedim(0, dim).flatten(dim, dim + 1)


def _scatter(whole: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """This rank's share along ``dim`` of the sum over ``axis``."""
    parts = whole.unflatten(dim, (axis.degree, -1)).movedim(dim, 0).contiguous()
    share = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(share, parts.flatten(0, 1), group=axis.group)
    return share


class _Gathered(torch.autograd.Function):
    """:func:`_gather`; backward, each rank has the sum of the gradients of its own share."""

    @staticmethod
    def forward(ctx, x, axis, dim):
        ctx.how = axis, dim
        return _gather(x, *ctx.how)

    @staticmethod
    def backward(ctx, gradient):
        return _scatter(gradient, *ctx.how), None, None


class _Scattered(torch.autograd.Function):
    """:func:`_scatter`; backward, each rank has the gradients of all shares."""

    @staticmethod
    def forward(ctx, x, axis, dim):
        ctx.how = axis, dim
        return _scatter(x, *ctx.how)

    @staticmethod
    def backward(ctx, gradient):
        return _gather(gradient, *ctx.how), None, None


class _GatheredAgain:
    """Keeps of a gathered state that several products save this rank's share alone, for the first that wants it back.

    So Megatron's column-parallel layers do (Korthikanti et al., arXiv 2205.05198, section 4.2.2).
    """

    def __init__(self, whole: torch.Tensor, share: torch.Tensor, axis: Axis, matrix: Linear):
        self._address, self._share, self._axis, self._matrix = whole.data_ptr(), share.detach(), axis, matrix
        self._wanted, self._whole = 0, None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[torch.Size, tuple[int, ...]]:
        """Instead of a view of all of the state keep how it is one."""
        if tensor.data_ptr() != self._address:
            return tensor
        self._wanted += 1
        return tensor.shape, tensor.stride()

    def unpack(self, packed: torch.Tensor | tuple[torch.Size, tuple[int, ...]]) -> torch.Tensor:
        """Return what was packed."""
        if isinstance(packed, torch.Tensor):
            return packed
        if self._whole is None:
            self._whole = self._matrix.lay_out(_gather(self._share, self._axis, _POSITIONS))
        whole, self._wanted = self._whole, self._wanted - 1
        if not self._wanted:
            self._whole = None
        return whole.as_strided(*packed)
