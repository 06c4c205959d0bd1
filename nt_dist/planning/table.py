"""Plans as Markdown."""

from collections.abc import Sequence

from nt_dist.planning.layouts import LayoutPlan

GIB, MIB = 2**30, 2**20
STATE = ("weights", "index", "gradients", "masters", "moments")


def layouts_table(plans: Sequence[LayoutPlan]) -> str:
    """The layouts, one a row: degrees; memory of the fullest rank by kind; what a rank sends in a step; time."""
    head = ["tensor", "pipe", "trail", "data", "ZeRO", "micro-batch"]
    head += [*STATE, "buffers", "activations", "logits", "update", "peak (GiB)"]
    head += ["sent over tensor", "trail", "data", "pipe (MiB a step)", "in an update"]
    head += ["bubble", "step (s)", "tokens/s"]
    lines = [_row(head), "|" + "---|" * len(head)]
    return "\n".join([*lines, *(_row(_cells(plan)) for plan in plans)])


def _cells(plan: LayoutPlan) -> list[str]:
    config, memory, time = plan.config, plan.memory, plan.time
    degrees, state = config.parallel, memory.state
    cells = [degrees.tensor, degrees.pipe, degrees.trail, config.data_degree, config.zero_stage]
    cells += [config.train.micro_batch_size]
    sizes = [getattr(state, kind) for kind in (*STATE, "buffers")]
    sizes += [memory.activations, memory.logits, state.update, memory.peak]
    moved = [time.sent[axis] for axis in ("tensor", "trail", "data", "pipe")] + [time.update_sent]
    return [
        *map(str, cells),
        *(f"{size / GIB:.2f}" for size in sizes),
        *(f"{each / MIB:,.0f}" for each in moved),
        f"{time.bubble:.0%}",
        f"{time.total:.3g}",
        f"{plan.tokens_per_second:,.0f}",
    ]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
