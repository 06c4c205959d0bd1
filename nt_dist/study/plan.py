"""A plan: several runs that differ from one config in a few settings, as one TOML file.

    base = "configs/bench_mini.toml"    # from the current folder, as every path in a config
    dir = "runs/baselines"              # each run has a folder in it, and all share one folder of prepared data

    [settings]                          # over the base, for all runs
    train.steps = 400

    [runs.single_dense]                 # over the settings, for one run
    trails.count = 1
    sparsity.density = 1.0

    [ensembles]                         # runs that are evaluated together, as one ensemble of all their trails
    deep_ensemble = ["single_dense", "another"]

Other plans are the diversity study's, one config at several densities and trail lengths, and runs that are there.
Nothing is trained here.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nt_dist.config import Config
from nt_dist.config.keys import hint, nearest, toml_value
from nt_dist.errors import ConfigError, RunError
from nt_dist.families import load_config

_KEYS = {"base": str, "dir": str, "runs": dict, "settings": dict, "ensembles": dict}
_OPTIONAL = {"settings": {}, "ensembles": {}}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: a config file, ``section.key=value`` over it, and what the two make."""

    name: str
    base: str
    overrides: tuple[str, ...]
    config: Config

    @property
    def dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.dir)


@dataclass(frozen=True)
class Plan:
    """The runs of a plan by name, in its order, and the names of those that make up each ensemble."""

    dir: Path
    runs: dict[str, PlannedRun]
    ensembles: dict[str, list[str]]

    def only(self, names: Sequence[str]) -> "Plan":
        """The part of the plan that ``names`` (of runs and ensembles) need; a ConfigError where one is not in it."""
        known = [*self.runs, *self.ensembles]
        if unknown := [name for name in names if name not in known]:
            raise ConfigError([f"{name!r} is not in the plan{hint(nearest(name, known))}" for name in unknown])
        ensembles = {name: members for name, members in self.ensembles.items() if name in names}
        needed = {*names, *(member for members in ensembles.values() for member in members)}
        return Plan(self.dir, {name: run for name, run in self.runs.items() if name in needed}, ensembles)


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan and the config of each of its runs, over which ``overrides`` win; a ConfigError has all mistakes."""
    try:
        content = _OPTIONAL | tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from None
    if problems := [*_wrong_keys(content)] or [*_wrong_contents(content)]:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    common = _overrides(content["settings"])
    variants = {name: [*common, *_overrides(own), *overrides] for name, own in content["runs"].items()}
    runs = plan_runs(content["base"], Path(content["dir"]), variants, path)
    return Plan(Path(content["dir"]), runs, content["ensembles"])


def plan_runs(
    base: str, folder: Path, variants: Mapping[str, Sequence[str]], named: Path | str
) -> dict[str, PlannedRun]:
    """Make the runs of a plan: each in a folder of its own in ``folder``, with one folder of prepared data for all.

    ``variants`` are ``section.key=value`` over the base, by the run's name. A ConfigError has everything that is wrong,
    run by run, under the name of where the variants come from.
    """
    runs, problems = {}, []
    for name, overrides in variants.items():
        own = (*overrides, f"run.dir={toml_value(str(folder / name))}")
        try:
            config = load_config(base, own)
            if hasattr(config.data, "prepared"):  # a family's own setting, over which a given one wins
                own = (f"data.prepared={toml_value(str(folder / 'data'))}", *own)
                config = load_config(base, own)
            runs[name] = PlannedRun(name, base, own, config)
        except ConfigError as error:
            problems += [f"{named}: {name}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return runs


def _wrong_keys(content: Mapping[str, Any]) -> Iterator[str]:
    for key in [key for key in content if key not in _KEYS]:
        yield f"{key} is no key of a plan{hint(nearest(key, _KEYS))}"
    for key, kind in _KEYS.items():
        if key not in content:
            yield f"{key} is missing"
        elif not isinstance(content[key], kind):
            yield f"{key} = {content[key]!r} must be {'a string' if kind is str else 'a table'}"


def _wrong_contents(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a plan that has its keys, apart from the settings of its runs."""
    runs, ensembles = content["runs"], content["ensembles"]
    if not runs:
        yield "[runs] is empty"
    for name in [*runs, *ensembles]:
        if not _NAME.fullmatch(name) or name == "data":
            yield f"{name!r} cannot be a name: letters, digits, '.', '_' and '-', and not 'data'"
        if name in runs and name in ensembles:
            yield f"{name!r} is the name of a run and of an ensemble"
    for name, table in {**runs, "settings": content["settings"]}.items():
        if not isinstance(table, dict) or not all(isinstance(values, dict) for values in table.values()):
            yield f"{name}: must hold settings, as in train.steps = 400"
    for name, members in ensembles.items():
        if not isinstance(members, list) or len(members) < 2:
            yield f"ensembles.{name} = {members!r} must be a list of at least two runs"
        else:
            strangers = [member for member in members if member not in runs]
            yield from (f"ensembles.{name}: {each!r} is no run{hint(nearest(str(each), runs))}" for each in strangers)


def _overrides(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}.{key}={toml_value(value)}" for name, entries in sections.items() for key, value in entries.items()]


class SweepPoint(NamedTuple):
    """A point of the diversity study."""

    density: float
    layers: int  # blocks in a trail

    @property
    def name(self) -> str:
        """Its run's name."""
        return f"density_{self.density:g}_layers_{self.layers}"


def parse_points(densities: str, layers: str, points: str) -> list[SweepPoint]:
    """Read a study's points: all densities × layers, as in "0.2,0.9" and "2,4", or only some of these, as in "0.9:4".

    A ConfigError where something is no number, or one of ``points`` is not in the study.
    """
    try:
        every = [SweepPoint(float(d), int(n)) for n in layers.split(",") for d in densities.split(",")]
        some = [SweepPoint(float(d), int(n)) for d, n in (each.split(":") for each in points.split(",") if each)]
    except ValueError:
        rule = "--densities and --layers must be numbers with commas between, --points as in 0.9:4,0.5:2"
        raise ConfigError([rule]) from None
    if strange := [f"--points {each.density:g}:{each.layers}" for each in some if each not in every]:
        raise ConfigError([f"{each}: is not among the densities and layers of the study" for each in strange])
    return [each for each in dict.fromkeys(every) if not some or each in some]


def plan_sweep(
    points: Sequence[SweepPoint], base: str, folder: Path, steps: int | None, overrides: Sequence[str]
) -> dict[str, PlannedRun]:
    """The runs of a study, see plan_runs: one config at each point, with a warm-up in proportion to the steps."""
    train, common = load_config(base, overrides, check_paths=False).train, list(overrides)
    if steps is not None:
        common.append(f"train.steps={steps}")
        if not any(each.startswith("train.warmup_steps=") for each in overrides):
            common.append(f"train.warmup_steps={max(1, round(train.warmup_steps * steps / train.steps))}")
    variants = {
        point.name: [*common, f"sparsity.density={point.density}", f"trails.layers={point.layers}"] for point in points
    }
    return plan_runs(base, folder, variants, base)


def parse_together(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Read ``NAME=RUN,RUN,…`` each, runs to evaluate together; a RunError where one is not of that form, or twice."""
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        folders = [Path(each) for each in rest.split(",") if each]
        if not name or len(folders) < 2 or name in found:
            raise RunError(f"--together {text}: must be NAME=RUN,RUN with a new name and two runs or more")
        found[name] = folders
    return found


def name_runs(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Name runs by their folders' last parts, with the part before where two are alike; a RunError where both are."""
    lasts = Counter(folder.resolve().name for folder in folders)
    found: dict[str, list[Path]] = {}
    for folder in folders:
        place = folder.resolve()
        name = place.name if lasts[place.name] == 1 else f"{place.parent.name}_{place.name}"
        if name in found:
            raise RunError(f"{found[name][0]}, {folder}: cannot be told apart by their names")
        found[name] = [folder]
    return found
