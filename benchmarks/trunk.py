"""Trail ranks that split the trunk's micro-batch against ranks that compute all of it each: time, bytes and memory.

Both trainers live in the same processes and take turns round by round, in rotating order; ratios are those of a round.
A rank's processor time is measured beside the clock's, which other programs on the machine prolong.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.allocations import Allocations
from benchmarks.setup import Bench, build_bench, synchronizer
from benchmarks.speed import WARM_UP_STEPS
from benchmarks.timing import Clock, Spread, rotated
from benchmarks.traffic import counted_traffic
from nt_dist.config import Config
from nt_dist.errors import ConfigError
from nt_dist.families import make_config
from nt_dist.parallel.mesh import init_mesh
from nt_dist.planning.communication import sent_bytes
from nt_dist.planning.local_layers import stage_layers

TRUNKS = ("replicated", "split")


@dataclass(frozen=True)
class TrunkFigures:
    """What one way of computing the trunk takes, on one rank.

    Attributes:
        seconds: Of a step, by round.
        cpu_seconds: Processor time of a step on this rank, by round.
        payload: Bytes of a step's collectives over the trail axis, counted, by operation.
        step_peak: The most bytes that a step allocates at one time, counted.
        activations: Bytes kept for backward, by formula.
    """

    seconds: Spread
    cpu_seconds: Spread
    payload: dict[str, int]
    step_peak: int
    activations: int

    def sent(self, ranks: int) -> float:
        """Return the bytes that each of ``ranks`` sends in a ring."""
        return sum(sent_bytes(operation, each, ranks) for operation, each in self.payload.items())


@dataclass(frozen=True)
class TrunkReport:
    """What :func:`measure_trunk` found.

    Attributes:
        ranks: Of the trail axis.
        of: The figures of both ways, by their name in ``parallel.trunk``.
    """

    ranks: int
    of: dict[str, TrunkFigures]

    def gain(self, kind: str) -> Spread:
        """Return ``kind`` ("seconds" or "cpu_seconds") replicated over the same split, by round."""
        replicated, split = (getattr(self.of[name], kind).rounds for name in TRUNKS)
        return Spread([whole / share for whole, share in zip(replicated, split, strict=True)])

    def table(self) -> str:
        """The report as Markdown."""
        lines = [
            "| trunk | step (s) | replicated / split | processor time of a rank (s) | replicated / split | "
            "sent over trail (KiB a step) | allocated in a step (MiB) | kept for backward, by formula (MiB) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, figures in self.of.items():
            gains = [str(self.gain(kind)) if name == "split" else "1" for kind in ("seconds", "cpu_seconds")]
            lines.append(
                f"| {name} | {figures.seconds} | {gains[0]} | {figures.cpu_seconds} | {gains[1]} | "
                f"{figures.sent(self.ranks) / 1024:,.1f} | "
                f"{figures.step_peak / 2**20:,.1f} | {figures.activations / 2**20:,.1f} |"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        of = {
            name: {**vars(each), "seconds": each.seconds.rounds, "cpu_seconds": each.cpu_seconds.rounds}
            for name, each in self.of.items()
        }
        return {"ranks": self.ranks, "trunk": of}


def measure_trunk(
    config: Config, *, num_rounds: int, num_steps: int, progress: Callable[[str], None] = lambda line: None
) -> TrunkReport:
    """Measure both ways of computing the trunk; a collective of all ranks, which nobody has joined yet.

    Args:
        config: Sizes, precision, ZeRO stage, degrees; its ``parallel.trunk`` is replaced.
        num_rounds: Rounds; each way takes ``num_steps`` steps in every one.
        num_steps: Steps timed together.
        progress: Told of every round.

    Raises:
        ConfigError: There are no two trail ranks, there is a pipeline, or the micro-batch cannot be split.
    """
    configs = {name: _with_trunk(config, name) for name in TRUNKS}
    if not configs["split"].splits_trunk or config.parallel.pipe > 1:
        raise ConfigError(
            [
                "a trunk can be split over two trail ranks or more, without stages: start with torchrun "
                f"--nproc-per-node 2 tools/benchmark.py trunk trails.count=4 parallel.trail=2; here are parallel.trail "
                f"= {config.parallel.trail} and parallel.pipe = {config.parallel.pipe}"
            ]
        )
    with counted_traffic() as traffic:
        benches = {name: build_bench(each, init_mesh(each)) for name, each in configs.items()}
        payloads = {}
        for name, bench in benches.items():
            for _ in range(WARM_UP_STEPS):
                bench.step()
            traffic.start(bench.mesh)
            bench.step()
            payloads[name] = {operation: each for (axis, operation), each in traffic.stop().items() if axis == "trail"}
    peaks = {name: _step_peak(bench) for name, bench in benches.items()}
    seconds = _time(benches, num_rounds, num_steps, progress)
    of = {
        name: TrunkFigures(
            *seconds[name],
            payloads[name],
            peaks[name],
            sum(layer.kept_bytes for layer in stage_layers(each)[0]),
        )
        for name, each in configs.items()
    }
    return TrunkReport(config.parallel.trail, of)


def _with_trunk(config: Config, trunk: str) -> Config:
    sections = replace(config, parallel=replace(config.parallel, trunk=trunk)).to_dict()
    return make_config(sections, config.deepspeed, config.world_size)


def _step_peak(bench: Bench) -> int:
    with Allocations(bench.mesh.device) as allocations:
        allocations.mark("start")
        bench.step()
        allocations.mark("stop")
    return allocations.peak("start", "stop")


def _time(
    benches: dict[str, Bench], num_rounds: int, num_steps: int, progress: Callable[[str], None]
) -> dict[str, tuple[Spread, Spread]]:
    """Seconds and processor seconds of a step, by round."""
    figures: dict[str, tuple[Spread, Spread]] = {name: (Spread([]), Spread([])) for name in benches}
    for number in range(num_rounds):
        for name in rotated(list(benches), number):
            bench = benches[name]
            clock = Clock(synchronizer(bench.mesh.device))
            bench.mesh.barrier()  # so that no rank's clock runs while it waits for another's last turn
            began = time.process_time()
            seconds = clock.seconds(bench.step, num_steps)
            used = time.process_time() - began
            for spread, each in zip(figures[name], (seconds, used), strict=True):
                spread.rounds.append(each / num_steps)
        last = ", ".join(f"{name} {seconds.rounds[-1]:.3f} s" for name, (seconds, _) in figures.items())
        progress(f"round {number + 1} of {num_rounds}: {last}")
    return figures
