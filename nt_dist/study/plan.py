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

A run may stand for several, which make one row of a comparison. These keys hold for all runs at the plan's head, and
for one among its settings, where they take the place of the head's:

    seeds = [0, 1]                                  # trained once with each
    tune.train.lr_embedding = [5.0, 20.0]           # first tried with each, and each of other settings, with the first
                                                    # seed; what is best in validation is trained with the other seeds

A run's folder is named by what differs from its settings, as in single_dense_lr_embedding20.0_seed1, so that seeds and
values may be added to a plan whose runs have been trained. An ensemble has a member's first seed, then its second.

Other plans are the diversity study's, one config at several densities and trail lengths, and runs that are there.
Nothing is trained here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

from nt_dist.config import Config
from nt_dist.config.keys import hint, nearest, toml_value
from nt_dist.config.load import parse_toml
from nt_dist.config.settings import Train, by_key
from nt_dist.errors import ConfigError, RunError
from nt_dist.families import load_config

_KEYS = {"base": str, "dir": str, "runs": dict, "settings": dict, "ensembles": dict, "seeds": list, "tune": dict}
_OF_A_MODEL = {"seeds": [], "tune": {}}  # of a run's keys those that are no sections of settings
_OPTIONAL = {"settings": {}, "ensembles": {}, **_OF_A_MODEL}
_KINDS = {str: "a string", dict: "a table", list: "a list"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.-]+")


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

    def but(self, settings: Mapping[str, Any], unnamed: Mapping[str, Any] | None = None) -> "PlannedRun":
        """The run with other settings, by section.key, and in a folder beside its own that those name which differ.

        ``unnamed`` are settings that follow from the others. A ConfigError where one cannot be.
        """
        given = [f"{key}={toml_value(value)}" for key, value in {**settings, **(unnamed or {})}.items()]
        changed = load_config(self.base, [*self.overrides, *given])
        own, other = by_key(self.config.to_dict()), by_key(changed.to_dict())
        words = [
            key.partition(".")[2] + _NOT_IN_NAMES.sub("_", str(other[key])).strip("_")
            for key in settings
            if other[key] != own[key]
        ]
        name = "_".join([self.name, *words])
        if name == self.name:
            return self
        overrides = (*self.overrides, *given, f"run.dir={toml_value(str(self.dir.with_name(name)))}")
        return PlannedRun(name, self.base, overrides, load_config(self.base, overrides))


@dataclass(frozen=True)
class PlannedModel:
    """A row of a comparison: what is tried for it, in words ("" where that is one thing), and a run of each a seed."""

    name: str
    tried: dict[str, list[PlannedRun]]

    @property
    def runs(self) -> list[PlannedRun]:
        """All of them."""
        return list(chain(*self.tried.values()))


@dataclass(frozen=True)
class Plan:
    """The models of a plan by name, in its order, and the names of those that make up each ensemble."""

    dir: Path
    models: dict[str, PlannedModel]
    ensembles: dict[str, list[str]]

    @property
    def runs(self) -> dict[str, PlannedRun]:
        """All runs that may be trained for its models, by name."""
        return {run.name: run for model in self.models.values() for run in model.runs}

    def each(self, change: Callable[[list[PlannedRun]], list[PlannedRun]]) -> "Plan":
        """The plan with other runs of everything that is tried."""
        changed = {
            name: replace(model, tried={what: change(runs) for what, runs in model.tried.items()})
            for name, model in self.models.items()
        }
        return replace(self, models=changed)


def read_plan(path: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Plan:
    """Read a plan and the config of each of its runs, over which ``overrides`` win; a ConfigError has all mistakes.

    Where ``only`` names runs and ensembles, the plan is of what these need, whatever the others are like.
    """
    try:
        content = _OPTIONAL | parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: is not TOML: {error}"]) from None
    if problems := [*_wrong_keys(content)] or [*_wrong_contents(content)]:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    if only:
        content = _part(content, only)
    common = _overrides(content["settings"])
    variants = {name: [*common, *_overrides(_sections(own)), *overrides] for name, own in content["runs"].items()}
    runs = plan_runs(content["base"], Path(content["dir"]), variants, path)
    models, problems, fixed = {}, [], {override.partition("=")[0] for override in overrides}
    for name, run in runs.items():
        seeds, tune = (content["runs"][name].get(key, content[key]) for key in _OF_A_MODEL)
        lists = {f"{section}.{key}": values for section, keys in tune.items() for key, values in keys.items()}
        lists = {key: values for key, values in {**lists, "train.seed": seeds}.items() if key not in fixed}
        try:
            models[name] = _model(run, lists.pop("train.seed", []), lists)
        except ConfigError as error:
            problems += [f"{path}: {name}: {problem}" for problem in error.problems]
    named = Counter(chain(content["ensembles"], *([run.name for run in model.runs] for model in models.values())))
    problems += [f"{path}: {name!r} would be two runs or ensembles" for name, times in named.items() if times > 1]
    if problems:
        raise ConfigError(problems)
    return Plan(Path(content["dir"]), models, content["ensembles"])


def _part(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What ``names`` (of runs and ensembles) need of a plan; a ConfigError where one is not in it."""
    runs, ensembles = content["runs"], content["ensembles"]
    if unknown := [name for name in names if name not in runs and name not in ensembles]:
        known = [*runs, *ensembles]
        raise ConfigError([f"{name!r} is not in the plan{hint(nearest(name, known))}" for name in unknown])
    ensembles = {name: members for name, members in ensembles.items() if name in names}
    needed = {*names, *chain(*ensembles.values())}
    return {**content, "runs": {name: own for name, own in runs.items() if name in needed}, "ensembles": ensembles}


def _model(run: PlannedRun, seeds: Sequence[int], tune: Mapping[str, Sequence[Any]]) -> PlannedModel:
    """Make a model of a run: all combinations of the values to try, each with all seeds."""
    tried = {}
    for values in product(*tune.values()):
        settings = dict(zip(tune, values, strict=True))
        one = run.but(settings)
        words = ", ".join(f"{key} = {toml_value(value)}" for key, value in settings.items())
        tried[words] = [one.but({"train.seed": seed}) for seed in seeds] or [one]
    return PlannedModel(run.name, tried)


def plan_runs(
    base: str, folder: Path, variants: Mapping[str, Sequence[str]], named: Path | str
) -> dict[str, PlannedRun]:
    """Make the runs of a plan: each in a folder of its own in ``folder``, with one folder of prepared data for all.

    ``variants`` are ``section.key=value`` over the base, by the run's name. A ConfigError has everything that is wrong,
    under the name of where the variants come from, and of the runs where it is not all of them.
    """
    runs, problems = {}, defaultdict(list)
    for name, overrides in variants.items():
        own = (*overrides, f"run.dir={toml_value(str(folder / name))}")
        try:
            config = load_config(base, own)
            if hasattr(config.data, "prepared"):  # a family's own setting, over which a given one wins
                own = (f"data.prepared={toml_value(str(folder / 'data'))}", *own)
                config = load_config(base, own)
            runs[name] = PlannedRun(name, base, own, config)
        except ConfigError as error:
            for problem in error.problems:
                problems[problem].append(name)
    if problems:
        all_of_several = [*variants] if len(variants) > 1 else None
        said = ["" if names == all_of_several else f"{', '.join(names)}: " for names in problems.values()]
        raise ConfigError([f"{named}: {who}{problem}" for who, problem in zip(said, problems, strict=True)])
    return runs


def _wrong_keys(content: Mapping[str, Any]) -> Iterator[str]:
    for key in [key for key in content if key not in _KEYS]:
        yield f"{key} is no key of a plan{hint(nearest(key, _KEYS))}"
    for key, kind in _KEYS.items():
        if key not in content:
            yield f"{key} is missing"
        elif not isinstance(content[key], kind):
            yield f"{key} = {content[key]!r} must be {_KINDS[kind]}"


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
        if not isinstance(table, dict) or not all(isinstance(values, dict) for values in _sections(table).values()):
            yield f"{name}: must hold settings, as in train.steps = 400"
        else:
            yield from (f"{name}: {problem}" for problem in _wrong_lists(table))
    yield from _wrong_lists(content)
    for name, members in ensembles.items():
        if not isinstance(members, list) or len(members) < 2:
            yield f"ensembles.{name} = {members!r} must be a list of at least two runs"
        else:
            strangers = [member for member in members if member not in runs]
            yield from (f"ensembles.{name}: {each!r} is no run{hint(nearest(str(each), runs))}" for each in strangers)


def _wrong_lists(table: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the seeds and the values to try, of all runs or of one."""
    seeds, tune = (table.get(key, none) for key, none in _OF_A_MODEL.items())
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        yield f"seeds = {seeds!r} must be a list of integers"
    sections = tune.values() if isinstance(tune, dict) else [None]
    lists = chain.from_iterable(keys.values() if isinstance(keys, dict) else [None] for keys in sections)
    if not all(isinstance(values, list) and values for values in lists):
        yield "tune: must hold lists of what to try, as in tune.train.lr = [1e-3, 2e-3]"
    elif "seed" in tune.get("train", {}):
        yield "tune.train.seed: is not tuned; seeds = [0, 1] gives several"


def _sections(table: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, without what makes several of it."""
    return {key: values for key, values in table.items() if key not in _OF_A_MODEL}


def _overrides(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{name}.{key}={toml_value(value)}" for name, entries in sections.items() for key, value in entries.items()]


class SweepPoint(NamedTuple):
    """A point of the diversity study."""

    density: float
    layers: int  # blocks in a trail
    joint: float | None = None  # weight of the ensemble's own loss; None: the config's

    @property
    def name(self) -> str:
        """Its run's name."""
        joint = "" if self.joint is None else f"_joint_{self.joint:g}"
        return f"density_{self.density:g}_layers_{self.layers}{joint}"


def parse_points(densities: str, layers: str, joints: str, points: str) -> list[SweepPoint]:
    """Read a study's points: all densities × layers × weights of the ensemble's loss, or only some of these.

    As in "0.2,0.9", "2,4" and "0,0.5" ("": only the config's), and "0.9:4:0.5". A ConfigError where something is no
    number, or one of ``points`` is not in the study.
    """
    try:
        weights = [float(w) for w in joints.split(",")] if joints else [None]
        axes = product(weights, layers.split(","), densities.split(","))
        every = [SweepPoint(float(d), int(n), w) for w, n, d in axes]
        given = [each.split(":") for each in points.split(",") if each]
        some = [SweepPoint(float(d), int(n), *map(float, w)) for d, n, *w in given]
    except (TypeError, ValueError):
        rule = "--densities, --layers and --joints must be numbers with commas between, --points as in 0.9:4,0.5:2"
        raise ConfigError([f"{rule} (with --joints 0.9:4:0.5)"]) from None
    if strange := [each for each in some if each not in every]:
        asked = [":".join(f"{number:g}" for number in each if number is not None) for each in strange]
        raise ConfigError([f"--points {each}: is not among the points of the study" for each in asked])
    return [each for each in dict.fromkeys(every) if not some or each in some]


def plan_sweep(
    points: Sequence[SweepPoint], base: str, folder: Path, steps: int | None, overrides: Sequence[str]
) -> dict[str, PlannedRun]:
    """The runs of a study, see plan_runs: one config at each point, with a warm-up in proportion to the steps.

    A RunError where ``overrides`` has a setting that the study itself gives.
    """
    given = {"sparsity.density": "--densities", "trails.layers": "--layers"}
    given |= {"trails.joint": "--joints"} if any(point.joint is not None for point in points) else {}
    given |= {} if steps is None else {"train.steps": "--steps"}
    for key in [each.partition("=")[0].strip() for each in overrides]:
        if key in given:
            raise RunError(f"{key} is what {given[key]} says; leave one of the two out")
    train, common = load_config(base, overrides, check_paths=False).train, list(overrides)
    if steps is not None:
        common.append(f"train.steps={steps}")
        if not any(each.startswith("train.warmup_steps=") for each in overrides):
            common.append(f"train.warmup_steps={warmup_in_proportion(train, steps)}")
    variants = {}
    for point in points:
        own = [f"sparsity.density={point.density}", f"trails.layers={point.layers}"]
        joint = [] if point.joint is None else [f"trails.joint={point.joint}"]
        variants[point.name] = [*common, *own, *joint]
    return plan_runs(base, folder, variants, base)


def warmup_in_proportion(train: Train, steps: int) -> int:
    """Steps of warm-up that are the same share of ``steps`` as those of ``train`` are of its own."""
    return max(1, round(train.warmup_steps * steps / train.steps))


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
