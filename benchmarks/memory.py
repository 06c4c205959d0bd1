"""Bytes per stored parameter: counted while a trainer trains, beside the formulas of planning/memory.py."""

import gc
from dataclasses import dataclass

import torch

from benchmarks.allocations import Allocations
from benchmarks.setup import Bench, at_density, build_bench, check
from nt_dist.config import Config
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.model.weights import count_parameters
from nt_dist.parallel.mesh import Mesh
from nt_dist.planning.memory import MemoryPlan, plan_memory

KINDS = ("weights", "masters", "gradients", "moments", "index", "update")  # buffers are no function of the model


@dataclass(frozen=True)
class MemoryReport:
    """What one density needs, in bytes.

    Attributes:
        density: Of the config.
        stored: Parameters stored (active, without padding).
        measured: Bytes by kind (see MemoryPlan; "update" is the most alive during an update beyond what is always).
        plan: The same from formulas.
        step_peak: The most alive during an ordinary step, activations and logits included.
        update_step_peak: The same of a step with a topology update.
    """

    density: float
    stored: int
    measured: dict[str, int]
    plan: MemoryPlan
    step_peak: int
    update_step_peak: int

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        formula = {kind: getattr(self.plan, kind) for kind in KINDS}
        return {**vars(self), "plan": formula, "storages": self.plan.storages}


def memory_table(reports: list[MemoryReport]) -> str:
    """Bytes per stored parameter, measured / formula, as Markdown; the steps' peaks in MiB."""
    lines = [
        f"| density | stored | storages | {' | '.join(KINDS)} | sum | step peak, with update (MiB) |",
        "|---|" + "---|" * (len(KINDS) + 4),
    ]
    for report in reports:
        formula = {kind: getattr(report.plan, kind) for kind in KINDS}
        pairs = [(report.measured[kind], formula[kind]) for kind in KINDS]
        pairs.append((sum(report.measured.values()), sum(formula.values())))
        cells = [f"{found / report.stored:.2f} / {said / report.stored:.2f}" for found, said in pairs]
        storages = ", ".join(report.plan.storages)
        peaks = f"{report.step_peak / 2**20:,.1f}, {report.update_step_peak / 2**20:,.1f}"
        lines.append(f"| {report.density:g} | {report.stored:,} | {storages} | {' | '.join(cells)} | {peaks} |")
    return "\n".join(lines)


def measure_memory(config: Config, mesh: Mesh, density: float) -> MemoryReport:
    """Trains a few steps at one density and counts.

    Args:
        config: Sizes, precision, ZeRO stage.
        mesh: One rank.
        density: 1 for the dense model.

    Raises:
        ConfigError: The config cannot be benchmarked.
    """
    check(config)
    config = at_density(config, density)
    with Allocations(mesh.device) as allocations:
        bench = build_bench(config, mesh)
        bench.step()
        allocations.mark("ordinary")
        _mark_backward(bench, allocations)
        bench.step()
        gc.collect()
        allocations.mark("rest")
        if bench.topology.sparse:
            _mark_update(bench, allocations)
    held = _held(bench)
    rest = allocations.at("rest")
    is_sparse = bool(bench.topology.sparse)
    batches = sum(tensor.nbytes for batch in bench.batches for tensor in batch)
    statistics = sum(
        2 * each.values.nbytes for each in statistics_of(bench.engine.module).values()
    )  # and a step's sums
    held["gradients"] = allocations.at("backward") - sum(held.values()) - batches - statistics - _buckets(bench)
    held["update"] = allocations.peak("update", "updated") - rest if is_sparse else 0
    step_peak = allocations.peak("ordinary", "rest")
    return MemoryReport(
        density,
        count_parameters(config)["stored"],
        {kind: held[kind] for kind in KINDS},
        plan_memory(config, device_type=mesh.device.type),
        step_peak,
        allocations.peak("rest", "updated") if is_sparse else step_peak,
    )


def _mark_backward(bench: Bench, allocations: Allocations) -> None:
    """Marks the moment between the last backward pass of an ordinary step and the optimizer's step."""
    step = bench.engine.step

    def marked() -> None:
        gc.collect()  # DeepSpeed leaves gradients in reference cycles at stage 3
        allocations.mark("backward")
        step()

    bench.engine.step = marked


def _mark_update(bench: Bench, allocations: Allocations) -> None:
    del bench.engine.step  # the marked one: this step's backward keeps dense gradients as well
    bench.step_before_update()
    allocations.mark("update")
    bench.update()
    allocations.mark("updated")


def _buckets(bench: Bench) -> int:
    """Bytes of DeepSpeed's gradient buckets, which it keeps at stage 3 and gives back after backward below."""
    buckets = getattr(bench.engine.optimizer, "ipg_buckets", {}).values()
    return sum(bucket.buffer.nbytes for bucket in buckets if isinstance(bucket.buffer, torch.Tensor))


def _held(bench: Bench) -> dict[str, int]:
    """Bytes of the tensors whose owners are known; what else is alive after backward are gradients."""
    weights = weights_of(bench.engine.module).values()
    moments = sum(state[name].nbytes for state in bench.state.optimizer.state.values() for name in bench.state.moments)
    return {
        "weights": sum(getattr(weight.values, "ds_tensor", weight.values).nbytes for weight in weights),
        "masters": bench.state.state_bytes() - moments,
        "moments": moments,
        "index": sum(buffer.nbytes for weight in weights for buffer in weight.buffers()),
    }
