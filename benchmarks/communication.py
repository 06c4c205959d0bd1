"""Bytes that data-parallel ranks exchange in a step, counted at the collectives, against density."""

from dataclasses import dataclass

from benchmarks.setup import DENSE, at_density, build_bench
from benchmarks.traffic import counted_traffic
from nt_dist.config import Config
from nt_dist.errors import ConfigError
from nt_dist.parallel.mesh import init_mesh
from nt_dist.planning.communication import Payload, sent_bytes, step_payload, update_payload


@dataclass(frozen=True)
class TrafficReport:
    """What one density exchanges on one rank.

    Attributes:
        density: Of the config.
        ordinary: Payload of a step between updates, counted.
        with_update: Payload of a step with a topology update, counted; empty for a dense model.
        planned: Payload of a step between updates, by formula.
        planned_update: What an update adds, by formula.
    """

    density: float
    ordinary: Payload
    with_update: Payload
    planned: Payload
    planned_update: Payload

    def sent(self, ranks: int) -> tuple[float, float]:
        """Return the bytes a rank sends in a step between updates, and in one with an update, in a ring of ranks."""
        ordinary, update = (
            sum(sent_bytes(operation, each, ranks) for (_, operation), each in payload.items())
            for payload in (self.ordinary, self.with_update)
        )
        return ordinary, update

    @property
    def is_planned(self) -> bool:
        """Whether the formulas say the very same."""
        added = {
            key: self.planned.get(key, 0) + self.planned_update.get(key, 0)
            for key in {*self.planned, *self.planned_update}
        }
        return self.ordinary == self.planned and (not self.with_update or self.with_update == added)


def measure_traffic(config: Config, densities: list[float]) -> list[TrafficReport]:
    """Count one step at each density, and at density 1. A collective of all ranks, which nobody has joined yet.

    Raises:
        ConfigError: There are no two data ranks, or another axis has more than one.
    """
    if config.data_degree < 2 or config.model_degree > 1:
        raise ConfigError(
            [
                "bytes between data ranks need at least two of them, and no other axis: start with torchrun "
                f"--nproc-per-node 2 tools/benchmark.py communication; here are {config.world_size} ranks"
            ]
        )
    return [_measure(at_density(config, density)) for density in dict.fromkeys([*densities, DENSE])]


def _measure(config: Config) -> TrafficReport:
    with counted_traffic() as traffic:
        mesh = init_mesh(config)
        bench = build_bench(config, mesh)
        for _ in range(2):  # DeepSpeed's stage 3 learns in the first steps what is needed when
            bench.step()
        traffic.start(mesh)
        bench.step()
        ordinary, with_update = traffic.stop(), {}
        if bench.topology.sparse:
            traffic.start(mesh)
            bench.step_before_update()
            bench.update()
            with_update = traffic.stop()
    return TrafficReport(config.sparsity.density, ordinary, with_update, step_payload(config), update_payload(config))


def traffic_table(reports: list[TrafficReport], ranks: int) -> str:
    """The bytes a rank sends, in KiB and as shares of the dense model's, as Markdown."""
    dense, _ = next(report for report in reports if report.density == DENSE).sent(ranks)
    lines = [
        "| density | between updates (KiB) | of dense | step with an update (KiB) | of dense | formulas |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        ordinary, update = report.sent(ranks)
        last = f"{update / 1024:,.1f} | {update / dense:.3f}" if report.with_update else "- | -"
        agree = "equal" if report.is_planned else "differ"
        lines.append(f"| {report.density:g} | {ordinary / 1024:,.1f} | {ordinary / dense:.3f} | {last} | {agree} |")
    return "\n".join(lines)
