"""One door to the optimizer: masters, moments and Adam's step, wherever a DeepSpeed engine keeps them.

See docs/design.md §7.

What DeepSpeed 0.19.8 makes of the client's AdamW or SGD:

    precision  ZeRO   engine.optimizer              masters                         compute copy
    fp32       0      the client's, which clips     the parameters                  (the same)
    fp32       1, 2   DeepSpeedZeroOptimizer        flat partitions                 views of flat buffers
    bf16       1      BF16_Optimizer                flat partitions                 views of flat buffers
    bf16       2      DeepSpeedZeroOptimizer        flat partitions                 views of flat buffers
    both       3      DeepSpeedZeroOptimizer_Stage3 one flat partition a sub-group  ds_tensor, and the parameter if kept

A *partition* is the part of one parameter whose state this rank keeps; in all cases it is one contiguous range.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from deepspeed import comm
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from nt_dist.config.settings import AVERAGE
from nt_dist.engine.optimizers import Clipped
from nt_dist.sparsity.weight import Weight

State = dict[str, torch.Tensor]
"""What is kept of a weight: "value", each moment by its name in torch, maybe "average" (``config.train.moments``); fp32
and shaped like ``weight.values``. Entries of a masked weight that are not active are 0 in all."""


class Partition(NamedTuple):
    """The part of a parameter whose state this rank keeps."""

    start: int  # its first entry, in the flattened parameter
    state: State  # views [entries] of master and moments


class ComputeCopy(NamedTuple):
    """What this rank holds of a parameter to compute with."""

    start: int  # its first entry, in the flattened parameter
    values: torch.Tensor  # view [entries], in the precision of forward passes
    is_whole: bool  # whether that is the whole parameter, as on every data rank then


class OptimizerState(ABC):
    """Reads and writes the state of one engine's optimizer; one subclass for each place it may be."""

    is_partitioned = True  # whether masters are flat partitions apart from the parameters

    def __init__(self, engine: Any):
        self.engine, self.wrapper = engine, engine.optimizer
        self.optimizer: torch.optim.Optimizer = engine.basic_optimizer
        self.moments: tuple[str, ...] = engine.moments
        self._has_step = isinstance(self.optimizer, torch.optim.AdamW)

    def create(self) -> None:
        """Make moments (zero), averages (the values) and Adam's step (0): torch makes its own at the first step."""
        for group, master in self._masters():
            state = self.optimizer.state[master]
            if state:
                continue
            if self._has_step:
                at_device = group["fused"] or group["capturable"]  # torch keeps the step on the CPU otherwise
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device if at_device else "cpu")
            for moment in self.moments:
                first = torch.clone if moment == AVERAGE else torch.zeros_like
                state[moment] = first(master.detach(), memory_format=torch.preserve_format)

    def read(self, weight: Weight) -> State:
        """Return copies of the whole state of ``weight``, to the bit, on every rank.

        A collective of the data ranks: all read the same weights in the same order.
        """
        shape, partition = _whole_shape(weight.values), self.partition(weight)
        if not self.is_partitioned or comm.get_world_size(self.engine.data_parallel_group) == 1:
            return {name: part.clone().view(shape) for name, part in partition.state.items()}
        names = ("value", *self.moments)
        whole = torch.zeros(len(names), shape.numel(), dtype=torch.float32, device=self.engine.device)
        state = dict(zip(names, whole, strict=True))
        for name, mine in partition.state.items() if partition else ():
            state[name].narrow(0, partition.start, mine.numel()).copy_(mine)
        # Of each entry one rank has the bits and the others 0: as integers their sum is exact, also for -0 and NaN.
        comm.all_reduce(whole.view(torch.int32), group=self.engine.data_parallel_group)
        return {name: row.view(shape) for name, row in state.items()}

    @torch.no_grad()
    def write(self, weight: Weight, state: State) -> None:
        """Replace the state of ``weight`` (the same on all data ranks), its compute copy included. No communication."""
        shape, partition = _whole_shape(weight.values), self.partition(weight)
        assert state.keys() == {"value", *self.moments}, f"{weight.spec.name}: {sorted(state)}"
        for part in state.values():
            assert (part.shape, part.dtype) == (shape, torch.float32), f"{weight.spec.name}: {part.dtype} {part.shape}"
        for name, mine in partition.state.items() if partition else ():
            mine.copy_(state[name].flatten().narrow(0, partition.start, mine.numel()))
        if self.is_partitioned:
            self._write_compute_copy(weight.values, state["value"])

    @torch.no_grad()
    def move_averages(self, share: float) -> None:
        """Move each average by a share of its way to the value. No communication, and no copies."""
        parts = [self._parts(master) for _, master in self._masters()]
        torch._foreach_lerp_([part[AVERAGE] for part in parts], [part["value"] for part in parts], share)

    @property
    def step(self) -> int:
        """Adam's step, of which its bias correction is a function; 0 for SGD, which counts none."""
        steps = {int(self.optimizer.state[master]["step"]) if self._has_step else 0 for _, master in self._masters()}
        assert len(steps) == 1, f"parts of the model are at different steps of Adam: {sorted(steps)}"
        return steps.pop()

    @step.setter
    def step(self, step: int) -> None:
        for _, master in self._masters() if self._has_step else ():
            self.optimizer.state[master]["step"].fill_(step)

    def state_bytes(self) -> int:
        """Return the bytes of masters (where they are not the parameters) and moments on this rank."""
        counted = ("value", *self.moments) if self.is_partitioned else self.moments
        return sum(self._parts(master)[name].nbytes for _, master in self._masters() for name in counted)

    def compute_copy(self, weight: Weight) -> ComputeCopy:
        """Return what forward passes read of ``weight`` on this rank."""
        return ComputeCopy(0, weight.values.data.view(-1), True)

    @abstractmethod
    def _masters(self) -> list[tuple[dict, torch.Tensor]]:
        """Return (parameter group, fp32 tensor) for all that is stepped on this rank."""

    @abstractmethod
    def partition(self, weight: Weight) -> Partition | None:
        """Return views of what this rank keeps of the state of ``weight``; None if it keeps nothing of it."""

    def _parts(self, master: torch.Tensor) -> State:
        """A master and its moments, by name."""
        return {"value": master.data, **{name: self.optimizer.state[master][name] for name in self.moments}}

    def _write_compute_copy(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Put the whole ``value`` where forward passes read it."""
        parameter.data.copy_(value)


class PlainState(OptimizerState):
    """fp32 at ZeRO 0: the parameters are the masters."""

    is_partitioned = False

    def _masters(self) -> list[tuple[dict, torch.Tensor]]:
        return [(group, parameter) for group in self.optimizer.param_groups for parameter in group["params"]]

    def partition(self, weight: Weight) -> Partition:
        return Partition(0, {name: part.view(-1) for name, part in self._parts(weight.values).items()})


class LinkedState(OptimizerState):
    """ZeRO 1 and 2, and DeepSpeed's bf16 optimizer: each parameter is linked to its range of a flat partition."""

    def create(self) -> None:
        super().create()
        self.wrapper._lazy_init_hp_params_optimizer_state()

    def _masters(self) -> list[tuple[dict, torch.Tensor]]:
        is_bf16 = isinstance(self.wrapper, BF16_Optimizer)
        flat = self.wrapper.fp32_groups_flat_partition if is_bf16 else self.wrapper.single_partition_of_fp32_groups
        return list(zip(self.optimizer.param_groups, flat, strict=True))

    def partition(self, weight: Weight) -> Partition | None:
        link = weight.values._hp_mapping
        if link is None:
            return None
        moments = {name: link.get_hp_fragment(name) for name in self.moments}
        return Partition(link.lp_fragment_address.start, {"value": link.get_hp_fragment().detach(), **moments})


class Stage3State(OptimizerState):
    """ZeRO 3: parameters are cut into equal partitions, the last of which may end in padding."""

    def _masters(self) -> list[tuple[dict, torch.Tensor]]:
        groups = self.wrapper.sub_group_to_group_id
        flat = self.wrapper.fp32_partitioned_groups_flat
        return [(self.optimizer.param_groups[groups[number]], master) for number, master in enumerate(flat)]

    def _range(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Return the first entry of this rank's partition and the number of its entries that are not padding."""
        size = parameter.partition_numel()
        start = self.wrapper._get_param_partition_rank(parameter) * size
        return start, max(min(size, parameter.ds_numel - start), 0)

    def compute_copy(self, weight: Weight) -> ComputeCopy:
        parameter = weight.values
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # kept gathered
            return super().compute_copy(weight)
        start, entries = self._range(parameter)
        return ComputeCopy(start, parameter.ds_tensor.data[:entries], False)

    def partition(self, weight: Weight) -> Partition | None:
        start, entries = self._range(weight.values)
        if entries == 0:
            return None
        sub_group, offset, _ = self.wrapper.grad_position[self.wrapper.get_param_id(weight.values)]
        parts = self._parts(self.wrapper.fp32_partitioned_groups_flat[sub_group])
        return Partition(start, {name: part[offset : offset + entries] for name, part in parts.items()})

    def _write_compute_copy(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        start, entries = self._range(parameter)
        parameter.ds_tensor.data[:entries].copy_(value.flatten()[start : start + entries])
        assert parameter.ds_status != ZeroParamStatus.INFLIGHT, "a parameter is written while it is being gathered"
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # small ones stay gathered between steps
            parameter.data.copy_(value)


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of ``parameter`` when gathered; under ZeRO 3 it is empty between uses."""
    return getattr(parameter, "ds_shape", parameter.shape)


def optimizer_state(engine: Any) -> OptimizerState:
    """Return the adapter for ``engine``'s optimizer."""
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        return Stage3State(engine)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer | BF16_Optimizer):
        return LinkedState(engine)
    assert isinstance(engine.optimizer, Clipped), f"no adapter for {type(engine.optimizer)}"
    return PlainState(engine)
