"""All layouts of a config on a number of GPUs, those that fit, the best of them first, as a table too."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nt_dist.config import Config
from nt_dist.config.rules import is_possible
from nt_dist.planning.gpus import NODE, RESERVED, Gpu
from nt_dist.planning.memory import RankMemory, at_stages, fullest_stage, markdown
from nt_dist.planning.timing import StepTime, step_time

_DEGREES, _TIMES = 6, 2  # columns of a layout at the beginning and at the end of its row


@dataclass(frozen=True)
class LayoutPlan:
    """One layout and what it costs."""

    config: Config  # in this layout
    memory: RankMemory  # of the fullest rank
    time: StepTime  # of a step

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
        memory = fullest_stage(each)
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
    for tensor in _divisors(min(world, NODE), world):
        for trail in _divisors(min(config.trails.count, NODE // tensor), config.trails.count):
            for pipe in _divisors(min(model.num_layers, world), world):
                if world % (tensor * trail * pipe) == 0:
                    degrees = replace(config.parallel, tensor=tensor, pipe=pipe, trail=trail)
                    for each in at_stages(replace(config, parallel=degrees)):
                        most = config.train.batch_size // each.data_degree
                        sizes = (1 << power for power in range(most.bit_length()))
                        trains = (replace(each.train, micro_batch_size=size) for size in sizes)
                        yield from filter(is_possible, (replace(each, train=train) for train in trains))


def _divisors(highest: int, number: int) -> list[int]:
    return [each for each in range(1, highest + 1) if number % each == 0]


def layouts_table(plans: Sequence[LayoutPlan]) -> str:
    """The layouts as Markdown, one a row: degrees; memory of the fullest rank; what a rank sends in a step; time."""
    return markdown([_columns(plan) for plan in plans])


def brief_table(plans: Sequence[LayoutPlan]) -> str:
    """The layouts for a terminal: degrees, the peak of the fullest rank, time."""
    rows = [dict([*_columns(plan)[:_DEGREES], *_columns(plan)[-_TIMES:]]) for plan in plans]
    rows = [row | {"peak (GiB)": f"{plan.memory.peak / 2**30:.2f}"} for row, plan in zip(rows, plans, strict=True)]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def command_line(plan: LayoutPlan, config_path: str, overrides: Sequence[str], gpus_a_node: int) -> str:
    """The command that trains in a layout, on one node or, in each of several, under their launcher."""
    config = plan.config
    degrees = {f"parallel.{axis}": getattr(config.parallel, axis) for axis in ("tensor", "pipe", "trail")}
    chosen = {**degrees, "train.micro_batch_size": config.train.micro_batch_size}
    words = [*overrides, *(f"{key}={value}" for key, value in chosen.items())]
    start = f"deepspeed --num_gpus {config.world_size}" if config.world_size <= gpus_a_node else "srun python"
    ds_config = f"configs/ds/zero{config.zero_stage}.json"
    return f"{start} train.py --config {config_path} --ds_config {ds_config} {shlex.join(words)}"


def _columns(plan: LayoutPlan) -> list[tuple[str, str]]:
    config, memory, time = plan.config, plan.memory, plan.time
    degrees, state, sent = config.parallel, memory.state, time.sent
    counts = [(axis, getattr(degrees, axis)) for axis in ("tensor", "pipe", "trail")]
    counts += [("data", config.data_degree), ("ZeRO", config.zero_stage)]
    counts += [("micro-batch", config.train.micro_batch_size)]
    kinds = ("weights", "index", "gradients", "masters", "moments", "buffers")
    sizes = [(kind, getattr(state, kind)) for kind in kinds]
    sizes += [("activations", memory.activations), ("logits", memory.logits)]
    sizes += [("update", state.update), ("peak (GiB)", memory.peak)]
    moved = [("sent over tensor", sent["tensor"]), ("trail", sent["trail"]), ("data", sent["data"])]
    moved += [("pipe (MiB a step)", sent["pipe"]), ("in an update", time.update_sent)]
    return [
        *((name, str(count)) for name, count in counts),
        *((name, f"{size / 2**30:.2f}") for name, size in sizes),
        *((name, f"{each / 2**20:,.0f}") for name, each in moved),
        ("bubble", f"{time.bubble:.0%}"),
        ("step (s)", f"{time.total:.3g}"),
        (f"{config.family.sample}s/s", f"{plan.tokens_per_second:,.0f}"),
    ]
