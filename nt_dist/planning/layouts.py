"""All layouts of a config on a number of GPUs, those that fit, and the best of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nt_dist.config import Config
from nt_dist.config.rules import is_possible
from nt_dist.config.settings import Parallel
from nt_dist.planning.gpus import NODE, RESERVED, Gpu
from nt_dist.planning.memory import RankMemory, fullest_stage
from nt_dist.planning.timing import StepTime, step_time

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class LayoutPlan:
    """One layout and what it costs.

    Attributes:
        config: The config in this layout.
        memory: Of the fullest rank.
        time: Of a step.
    """

    config: Config
    memory: RankMemory
    time: StepTime

    @property
    def tokens_per_second(self) -> float:
        """Positions of all ranks together: a text's tokens."""
        return self.config.train.batch_size * self.config.family.positions(self.config) / self.time.total


def plan_layouts(config: Config, gpu: Gpu) -> tuple[list[LayoutPlan], int]:
    """Return the layouts of ``config.world_size`` GPUs that fit, fastest first, and how many were looked at.

    Each (tensor, pipe, trail, ZeRO stage) appears once, with its fastest micro-batch that fits; among equals the
    smaller. Tensor and trail ranks stay within a node of NVLink.
    """
    best: dict[tuple, LayoutPlan] = {}
    looked_at = 0
    for each in layouts(config):
        looked_at += 1
        _, memory = fullest_stage(each)
        if memory.peak > gpu.memory - RESERVED:
            continue
        plan = LayoutPlan(each, memory, step_time(each, gpu))
        key = (each.parallel, each.zero_stage)
        if key not in best or plan.time.total < best[key].time.total:
            best[key] = plan
    return sorted(best.values(), key=lambda plan: (plan.time.total, plan.memory.peak)), looked_at


def layouts(config: Config) -> Iterator[Config]:
    """Yield ``config`` in every layout that its rules allow."""
    world, model = config.world_size, config.model
    lowest = 1 if config.train.precision == "bf16" else 0
    for tensor in _divisors(min(world, NODE), world):
        for trail in _divisors(min(config.trails.count, NODE // tensor), config.trails.count):
            for pipe in _divisors(min(model.num_layers, world), world):
                if world % (tensor * trail * pipe) == 0:
                    degrees = replace(config.parallel, tensor=tensor, pipe=pipe, trail=trail)
                    for stage in STAGES[lowest:]:
                        yield from _micro_batches(_at(config, degrees, stage))


def _at(config: Config, degrees: Parallel, stage: int) -> Config:
    zero = {**config.deepspeed["zero_optimization"], "stage": stage}
    return replace(config, parallel=degrees, deepspeed={**config.deepspeed, "zero_optimization": zero})


def _micro_batches(config: Config) -> Iterator[Config]:
    size = 1
    while size * config.data_degree <= config.train.batch_size:
        each = replace(config, train=replace(config.train, micro_batch_size=size))
        if is_possible(each):
            yield each
        size *= 2


def _divisors(highest: int, number: int) -> list[int]:
    return [each for each in range(1, highest + 1) if number % each == 0]
