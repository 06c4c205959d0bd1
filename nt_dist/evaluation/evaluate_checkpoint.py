"""The evaluation of a run from one of its checkpoints, on any number of ranks.

Ranks are data ranks, whatever layout trained the model: each holds all of it, and its own share of the samples.
"""

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import CHECKPOINTS, find_asked
from nt_dist.checkpoint.manifest import CONFIG, TrainingState, read_manifest
from nt_dist.config import Config
from nt_dist.config.keys import toml_value
from nt_dist.data.loader import Chosen, EvaluationBatches
from nt_dist.data.samples import OpenData, Samples
from nt_dist.data.settings import name_of
from nt_dist.errors import CheckpointError, DataError, RunError
from nt_dist.evaluation.calibration import CalibrationSums
from nt_dist.evaluation.evaluate import SOURCES, evaluate, stream
from nt_dist.evaluation.full import evaluate_fully
from nt_dist.evaluation.predictions import by_predictor, predictions
from nt_dist.evaluation.report import evaluation_table, samples_used
from nt_dist.evaluation.topology import topology_figures
from nt_dist.evaluation.uncertainty import detection
from nt_dist.families import FAMILIES, load_config, make_config
from nt_dist.files import write_whole
from nt_dist.messages import ProgressBar
from nt_dist.model.trails import build_model
from nt_dist.model.weights import count_parameters, weight_specs
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh, init_mesh
from nt_dist.watch.heartbeat import Heartbeat
from nt_dist.watch.watching import agree_patiently

_NEVER = -1e4  # a logit whose class has no probability, yet a finite logarithm of it
_ONE_COPY = [f"parallel.{axis}=1" for axis in ("tensor", "pipe", "trail")]
_OF_CORRUPTIONS = ("accuracy", "nll", "ece")


@dataclass(frozen=True)
class CheckpointEvaluation:
    """What was evaluated, and how it did."""

    checkpoint: str
    step: int
    data: str  # what it was evaluated on, for people
    samples: tuple[int, int]  # how many of how many
    config: Config
    figures: dict  # see the family's `figures`; evaluation/full.py has the keys of a full one

    def table(self) -> str:
        """The figures for a terminal."""
        parameters = count_parameters(self.config)
        facts = {
            "weights": f"{parameters['stored']:,} stored of {parameters['dense']:,}",
            "checkpoint": f"{self.checkpoint}, step {self.step}",
            "data": f"{self.data}, {samples_used(self.config.family, *self.samples)}",
        }
        return evaluation_table(self.config.family, self.figures, facts)

    def write_json(self, path: Path) -> None:
        """Writes everything to a file, which is whole or not there; a RunError if it cannot be written."""
        used, there = self.samples
        content = {"checkpoint": self.checkpoint, "step": self.step, "data": self.data, "samples": used}
        content |= {"samples_there": there, "eval": self.figures}
        write_whole(path, json.dumps(content, indent=2) + "\n")


def join(world_size: int) -> Mesh:
    """The mesh of an evaluation: all ranks are data ranks."""
    return init_mesh(make_config({"train": {"batch_size": world_size, "micro_batch_size": 1}}, None, world_size))


def evaluate_checkpoint(
    path: Path,
    mesh: Mesh,
    data: str | None = None,
    overrides: Sequence[str] = (),
    full: bool = False,
    shift: str | None = None,
    corruptions: bool = False,
) -> CheckpointEvaluation:
    """Evaluates a checkpoint as its run would: same samples, precision and figures. Collective.

    Args:
        path: A checkpoint, a folder of checkpoints or a run's folder (then its newest whole checkpoint).
        mesh: From `join`; only data ranks.
        data: Other data to evaluate on (file, folder or pattern), read as the run's own; None: the run's own
            validation samples.
        overrides: ``section.key=value`` over the checkpoint's settings: ``run.eval_batches=0`` takes all samples.
        full: Whether to take all figures of evaluation/full.py.
        shift: Other data to tell from this by the ensemble's uncertainty: its path, or what `corruption` reads;
            implies ``full``.
        corruptions: Whether to evaluate on every corruption of the family at every level.

    An NTDistError, on all ranks, where checkpoint, settings or data cannot be used.
    """
    path = find_asked(path, mesh)
    config, num_samples = agree(mesh, lambda: _config(path, overrides, mesh.world_size), CheckpointError)
    state = agree(mesh, lambda: read_manifest(path).training_state)
    model = build_model(config, mesh.place, mesh.device)

    is_own = data is None and not any(override.startswith("data.") for override in overrides)
    used = agree(mesh, lambda: config.family.continued(config, state, path.parent.parent, False)) if is_own else config
    opened, against = agree(mesh, lambda: _open(used, mesh, state, data, shift), DataError)
    digest = (
        opened.digest if is_own else None
    )  # other data by oversight: its tokenizer, so the perplexity, would differ
    progress = checkpoint.load(path, config, mesh, model, None, data_digest=digest, verified=True)
    if config.train.precision == "bf16":
        model.bfloat16()
    batches = _batches(opened.validation, num_samples, mesh, config)
    if full or shift is not None:
        figures = all_figures(model, opened.validation, num_samples, mesh, config, against)
        figures["topology"] = topology_figures(path, mesh, weight_specs(config))
    else:
        figures = evaluate(model, batches, mesh, config)
    if corruptions:
        figures["corruptions"] = corruption_figures(model, opened, num_samples, mesh, config)
    described = data or f"validation of {name_of(config)}"
    samples = len(batches.chosen), len(opened.validation)
    return CheckpointEvaluation(str(path), progress.step, described, samples, config, figures)


def _open(
    config: Config, mesh: Mesh, state: TrainingState, data: str | None, shift: str | None
) -> tuple[OpenData, Any]:
    """What is evaluated on, and what it is told from: its name and an OpenData, or None."""

    def exchange(work):
        return agree_patiently(mesh, work, Heartbeat())  # preparing data takes as long as it takes

    family, corrupted = config.family, None if shift is None else corruption(shift)
    if data is None:
        opened = family.open_data(config, mesh.is_main, exchange)
    else:
        opened = family.open_other_data(config, data, exchange, state)
        if opened.foreign:
            raise DataError(opened.foreign)
    if shift is None:
        return opened, None
    if corrupted and corrupted[0] in family.corruptions.kinds:
        name, samples = family.corrupted(opened, *corrupted)
        return opened, (name, OpenData(None, samples, None, {}))
    return opened, (shift, family.open_other_data(config, shift, exchange, state))


def corruption(shift: str) -> tuple[str, float] | None:
    """Which corruption is meant by a family's name of one, perhaps with ``:LEVEL``; None if ``shift`` is a path.

    A RunError where it is empty, or the level is not one that the family's rule allows.
    """
    kinds = {kind: family.corruptions for family in FAMILIES.values() for kind in family.corruptions.kinds}
    if not shift.strip():
        raise RunError(f"--shift {shift!r}: must be a path, or {' or '.join(kinds)}, perhaps with :SHARE or :SEVERITY")
    kind, colon, number = shift.partition(":")
    if kind not in kinds:
        return None
    _, name, rule, default, _ = kinds[kind]
    try:
        level = float(number) if colon else default
    except ValueError:
        level = math.nan
    if not rule.holds(level):
        raise RunError(f"--shift {shift}: the {name} {rule.text}, as in {kind}:{default}")
    return kind, level


def all_figures(
    model: torch.nn.Module, samples: Samples, num_samples: int, mesh: Mesh, config: Config, shift=None
) -> dict:
    """What evaluation/full.py documents, but for the topology, of samples spread over all (0: of all). Collective.

    ``shift`` is what other samples are called, and these, an OpenData. Where they have only some of the classes, the
    figures are of answers among these, as is customary for ImageNet-A and -R; the scores that tell samples apart are
    not. A DataError where there are too few samples.
    """
    parts = [EverySecond(samples, num_samples, first) for first in (0, 1)]
    agree(mesh, lambda: _check_two(parts[1], config.family.samples_name))
    fit, measure = (_batches(part, 0, mesh, config) for part in parts)
    figures, scores = evaluate_fully(model, fit, mesh, config, measure)
    whole = _batches(samples, num_samples, mesh, config)
    if whole.by_source():
        own = evaluate(model, whole, mesh, config)
        figures |= {key: own[key] for key in (SOURCES, config.family.headline(own).samples)}
    if shift:
        against, other = shift
        batches = _batches(other.validation, num_samples, mesh, config)
        other_figures, other_scores = evaluate_fully(model, batches, mesh, config)
        if other.among:
            other_figures, _ = evaluate_fully(_Among(model, other.among), batches, mesh, config)
        figures["shift"] = {
            "against": against,
            "samples": {"unshifted": len(scores), "shifted": len(other_scores)},
            **detection(scores, other_scores),
            "eval": None if other.foreign else other_figures,
        }
    return figures


def _check_two(second: Samples, name: str) -> None:
    if not len(second):
        raise DataError(f"--full and --shift need two {name}, to fit temperatures on one and measure on the other")


def corruption_figures(model: torch.nn.Module, opened: Any, num_samples: int, mesh: Mesh, config: Config) -> dict:
    """How an ensemble does on its family's corruptions of validation samples spread over all (0: of all). Collective.

    Returns:
        level: what a level is called; levels: those taken.
        clean, mean: of the samples as they are, and the mean over all kinds and levels.
        kinds: {kind: one for each level}.
        All of these are {"accuracy", "nll", "ece"}, each by predictor as evaluation/full.py has it.
    """
    corruptions, num_trails = config.family.corruptions, config.trails.count

    def measure(samples: Samples) -> np.ndarray:
        sums = CalibrationSums(num_trails + 2, mesh.device)

        def add(*batch: torch.Tensor) -> None:
            for chunk in predictions(*batch, num_trails, mesh.place):
                sums.add(chunk)

        stream(model, _batches(samples, num_samples, mesh, config), mesh, add)
        sums.reduce(mesh)
        figures = sums.result()
        return np.array([figures[name] for name in _OF_CORRUPTIONS])  # [3, P]

    def named(figures: np.ndarray) -> dict:
        return by_predictor(dict(zip(_OF_CORRUPTIONS, figures.tolist(), strict=True)))

    found: dict[str, list[np.ndarray]] = {kind: [] for kind in corruptions.kinds}
    total = len(corruptions.kinds) * len(corruptions.levels)
    with ProgressBar(total, title="corruptions") if mesh.is_main else nullcontext() as bar:
        clean = measure(opened.validation)
        for kind, measured in found.items():
            for level in corruptions.levels:
                measured.append(measure(config.family.corrupted(opened, kind, level)[1]))
                if bar:
                    bar.update(sum(map(len, found.values())), kind)
    return {
        "level": corruptions.level,
        "levels": list(corruptions.levels),
        "clean": named(clean),
        "mean": named(np.mean(list(found.values()), (0, 1))),
        "kinds": {kind: [named(each) for each in measured] for kind, measured in found.items()},
    }


class _Among(torch.nn.Module):
    """A model that knows some of its classes only."""

    def __init__(self, model: torch.nn.Module, classes: Sequence[int]):
        super().__init__()
        self.model, self.classes = model, list(classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.model(inputs)
        found = torch.full_like(logits, _NEVER)
        found[..., self.classes] = logits[..., self.classes]
        return found


class EverySecond(Subset):
    """The samples 0, 2, 4, … (``first`` 0) or 1, 3, 5, … (1) of ``num_samples`` spread over all (0: of all)."""

    def __init__(self, samples: Samples, num_samples: int, first: int):
        chosen = Chosen(samples, num_samples)
        super().__init__(chosen, range(first, len(chosen), 2))

    def blank(self):
        return self.dataset.blank()


def _batches(samples: Samples, num_samples: int, mesh: Mesh, config: Config) -> EvaluationBatches:
    return EvaluationBatches(samples, config.train.micro_batch_size, num_samples, mesh.data.rank, mesh.data.degree)


def saved_config(folder: Path, overrides: Sequence[str] = (), world_size: int = 1) -> Config:
    """The settings that a checkpoint was written with, for ranks each of which holds all of the model; ``run.dir`` is
    where it lies now."""
    checkpoints = folder.absolute().parent
    moved = [f"run.dir={toml_value(str(checkpoints.parent))}"] if checkpoints.name == CHECKPOINTS else []
    return load_config(folder / CONFIG, [*moved, *overrides, *_ONE_COPY], world_size=world_size, check_paths=False)


def _config(path: Path, overrides: Sequence[str], world_size: int) -> tuple[Config, int]:
    """The checkpoint's config for this number of ranks, and how many samples its run evaluates on (0: all)."""
    config = saved_config(path, overrides)
    # the global batch of training need not divide by the ranks of an evaluation
    overrides = [*overrides, f"train.batch_size={config.train.micro_batch_size * world_size}"]
    return saved_config(path, overrides, world_size), config.run.eval_batches * config.train.batch_size
