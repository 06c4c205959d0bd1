"""The runs of the diversity study: one config at several densities and trail lengths."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nt_dist.errors import ConfigError
from nt_dist.families import load_config
from nt_dist.study.plan import PlannedRun, plan_runs


class SweepPoint(NamedTuple):
    """A density, and the number of blocks in a trail."""

    density: float
    layers: int

    @property
    def name(self) -> str:
        """Its run's name."""
        return f"density_{self.density:g}_layers_{self.layers}"


def parse_points(densities: str, layers: str, points: str) -> list[SweepPoint]:
    """Read the points of a study from the command line.

    All ``densities`` and ``layers``, as in "0.2,0.5,0.9" and "2,4,6", or some of these ``points``, as in "0.9:4,0.5:2".

    Raises:
        ConfigError: Something is no number, or one of ``points`` is not in the study.
    """
    try:
        every = [SweepPoint(float(d), int(n)) for n in layers.split(",") for d in densities.split(",")]
        some = [SweepPoint(float(d), int(n)) for d, n in (each.split(":") for each in points.split(",") if each)]
    except ValueError:
        rule = "--densities and --layers must be numbers with commas between, --points as in 0.9:4,0.5:2"
        raise ConfigError([rule]) from None
    strange = [f"{each.density:g}:{each.layers}" for each in some if each not in every]
    if strange:
        raise ConfigError([f"--points {each}: is not among the densities and layers of the study" for each in strange])
    return [each for each in dict.fromkeys(every) if not some or each in some]


def plan_sweep(
    points: Sequence[SweepPoint], base: str, folder: Path, steps: int | None, overrides: Sequence[str]
) -> dict[str, PlannedRun]:
    """The runs of a study: those of one config at each point, with a warm-up in proportion to the steps.

    Raises:
        ConfigError: With everything that is wrong, point by point.
    """
    train, common = load_config(base, overrides, check_paths=False).train, list(overrides)
    if steps is not None:
        common.append(f"train.steps={steps}")
        if not any(each.startswith("train.warmup_steps=") for each in overrides):
            common.append(f"train.warmup_steps={max(1, round(train.warmup_steps * steps / train.steps))}")
    variants = {
        point.name: [*common, f"sparsity.density={point.density}", f"trails.layers={point.layers}"] for point in points
    }
    return plan_runs(base, folder, variants, base)
