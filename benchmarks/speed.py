"""Samples per second of this trainer against a plain loop over plain dense layers, and what a topology update costs.

All contenders live in one process and take turns round by round, in rotating order, so that whatever else the machine
does meets all of them. Figures are ratios within a round: their median, and the range over rounds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.plain_trainer import PlainTrainer
from benchmarks.setup import at_density, build_bench, check, synchronizer, unit
from benchmarks.timing import Clock, Spread, rotated
from nt_dist.config import Config
from nt_dist.parallel.mesh import Mesh

WARM_UP_STEPS = 2
PLAIN, SINGLE = "plain", "single"


@dataclass(frozen=True)
class SpeedReport:
    """What `measure_speed` found.

    Attributes:
        unit: What is counted: tokens or pictures.
        per_step: How many one step of each contender has.
        plain: So many per second of the plain loop.
        trainer: So many per second of this trainer, by density.
        ratio: trainer over plain of the same round, by density.
        of_single: Time of the trainer's step over that of one dense model of this width and depth in a plain loop, of
            the same round, by density.
        update_share: Extra time of a step with a topology update (its dense gradients, update and check) over an
            ordinary step of the same round, divided by update_every, by density: the update's share of training.
        update_steps: The same, not divided: the update's cost in ordinary steps.
    """

    unit: str
    per_step: int
    plain: Spread
    trainer: dict[float, Spread]
    ratio: dict[float, Spread]
    of_single: dict[float, Spread]
    update_share: dict[float, Spread]
    update_steps: dict[float, Spread]

    def table(self) -> str:
        """The report for a terminal, and as Markdown."""
        lines = [
            f"| | {self.unit} per second | of plain: median (range) | updates included | topology update, share of "
            "training | in steps | time of one dense model's |",
            "|---|---|---|---|---|---|---|",
            f"| plain dense layers, plain loop | {self.plain.median:.0f} | 1 | 1 | - | - | - |",
        ]
        for density, ratio in self.ratio.items():
            share, steps = self.update_share.get(density), self.update_steps.get(density)
            update = (
                f"{share.median:.2%} ({min(share.rounds):.2%}-{max(share.rounds):.2%}) | {steps}" if share else "- | -"
            )
            whole = f"{ratio.median / (1 + (share.median if share else 0)):.3f}"
            rate = f"{self.trainer[density].median:.0f}"
            lines.append(f"| density {density:g} | {rate} | {ratio} | {whole} | {update} | {self.of_single[density]} |")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Every round of every figure, for JSON."""
        by_density = {
            f"{density:g}": {
                name: figures[density].rounds
                for name, figures in vars(self).items()
                if isinstance(figures, dict) and density in figures
            }
            for density in self.ratio
        }
        return {"unit": self.unit, "per_step": self.per_step, "plain": self.plain.rounds, "density": by_density}


def measure_speed(
    config: Config,
    mesh: Mesh,
    densities: list[float],
    *,
    num_rounds: int,
    num_steps: int,
    cpu_time: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> SpeedReport:
    """Measures the trainer at some densities against the plain loop.

    Args:
        config: Sizes, precision, ZeRO stage; its density is replaced by each of `densities`.
        mesh: One rank.
        densities: 1 is allowed, and has no topology update.
        num_rounds: Rounds; each contender takes `num_steps` steps in every one.
        num_steps: Steps timed together.
        cpu_time: Measure time computed, not time passed; it says little about more than one thread.
        progress: Told of every round.

    Raises:
        ConfigError: The config cannot be benchmarked.
    """
    assert num_rounds > 0 and num_steps > 0 and densities
    check(config)
    configs = {density: at_density(config, density) for density in densities}
    plain = PlainTrainer(config, mesh.device)
    benches = {density: build_bench(each, mesh) for density, each in configs.items()}
    batches = next(iter(benches.values())).batches
    single = PlainTrainer(replace(config, trails=replace(config.trails, count=1)), mesh.device)
    steps = {PLAIN: lambda: plain.step(batches), SINGLE: lambda: single.step(batches)}
    steps |= {density: bench.step for density, bench in benches.items()}
    updates = {density: bench for density, bench in benches.items() if bench.topology.sparse}
    clock = Clock(synchronizer(mesh.device), time.process_time if cpu_time else time.perf_counter)
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    for bench in updates.values():
        bench.step_before_update()
        bench.update()
    seconds: dict = {name: [] for name in steps}
    extra: dict = {density: [] for density in updates}
    for number in range(num_rounds):
        for name in rotated(list(steps), number):
            step = steps[name]
            seconds[name].append(clock.seconds(step, num_steps) / num_steps)
        for density, bench in updates.items():
            ordinary = clock.seconds(
                bench.step, 1
            )  # the step before, not the round's mean: the machine may have changed
            extra[density].append(
                (clock.seconds(bench.step_before_update, 1) + clock.seconds(bench.update, 1)) / ordinary - 1
            )
        progress(f"round {number + 1} of {num_rounds}: " + ", ".join(f"{n} {s[-1]:.3f} s" for n, s in seconds.items()))
    per_step = sum(batch.targets.numel() for batch in batches)
    rates = {name: Spread([per_step / each for each in seconds[name]]) for name in (PLAIN, *densities)}

    def over(upper: str | float, lower: str | float) -> Spread:
        return Spread([each / other for each, other in zip(seconds[upper], seconds[lower], strict=True)])

    every = config.sparsity.update_every
    return SpeedReport(
        unit=unit(config),
        per_step=per_step,
        plain=rates.pop(PLAIN),
        trainer=rates,
        ratio={density: over(PLAIN, density) for density in densities},
        of_single={density: over(density, SINGLE) for density in densities},
        update_share={density: Spread([each / every for each in figures]) for density, figures in extra.items()},
        update_steps={density: Spread(figures) for density, figures in extra.items()},
    )
