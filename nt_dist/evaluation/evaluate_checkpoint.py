"""The evaluation of a run from one of its checkpoints, on any number of ranks.

Ranks are data ranks, whatever layout trained the model: each holds all of it, and its own share of the samples.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.find import find, verify
from nt_dist.checkpoint.folder import locate
from nt_dist.config import Config
from nt_dist.config.family import Family
from nt_dist.data.loader import EvaluationBatches
from nt_dist.errors import CheckpointError, DataError, RunError
from nt_dist.evaluation.evaluate import evaluate, evaluate_fully
from nt_dist.evaluation.report import evaluation_table, full_tables
from nt_dist.evaluation.shift import detection
from nt_dist.evaluation.topology_history import topology_figures
from nt_dist.families import FAMILIES, load_config, make_config
from nt_dist.files import write_whole
from nt_dist.model.trails import build_model
from nt_dist.model.weights import count_parameters, weight_specs
from nt_dist.parallel.agree import agree
from nt_dist.parallel.mesh import Mesh, init_mesh
from nt_dist.watch.heartbeat import Heartbeat
from nt_dist.watch.watching import agree_patiently

_SHARE = 0.1  # that a corruption changes, where no other is given
_ONE_COPY = [f"parallel.{axis}=1" for axis in ("tensor", "pipe", "trail")]


@dataclass(frozen=True)
class CheckpointEvaluation:
    """What was evaluated, and how it did.

    Attributes:
        checkpoint: The checkpoint's folder.
        step: The step at which it was saved.
        data: What it was evaluated on, for people.
        parameters: Stored and dense counts.
        family: Whose model it is.
        figures: See the family's `figures`; evaluation/full.py has the keys of a full one.
    """

    checkpoint: str
    step: int
    data: str
    parameters: dict[str, int]
    family: Family
    figures: dict

    def table(self) -> str:
        """The figures for a terminal."""
        facts = {
            "weights": f"{self.parameters['stored']:,} stored of {self.parameters['dense']:,}",
            "checkpoint": f"{self.checkpoint}, step {self.step}",
            "data": self.data,
        }
        table = evaluation_table(self.family, self.figures, facts)
        return f"{table}\n\n{full_tables(self.family, self.figures)}" if "calibration" in self.figures else table

    def write_json(self, path: Path) -> None:
        """Writes everything to a file, which is whole or not there.

        Raises:
            RunError: It cannot be written.
        """
        content = {"checkpoint": self.checkpoint, "step": self.step, "data": self.data, "eval": self.figures}
        write_whole(path, json.dumps(content, indent=2) + "\n")


def check_json(path: Path) -> None:
    """Refuses, before any work, a file that could not be written.

    Raises:
        RunError: It is a folder, or its folder is not there or not writable.
    """
    if path.is_dir():
        raise RunError(f"--json {path}: is a folder")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise RunError(f"--json {path}: {path.absolute().parent} must be a folder that can be written to")


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
) -> CheckpointEvaluation:
    """Evaluates a checkpoint as its run would: same samples, precision and figures. Collective.

    Args:
        path: A checkpoint, a folder of checkpoints or a run's folder (then its newest whole checkpoint).
        mesh: From `join`.
        data: Other texts to evaluate on (file, folder or pattern), with the run's tokenizer and layout; None: the
            run's own validation texts.
        overrides: ``section.key=value`` over the checkpoint's settings: ``run.eval_batches=0`` takes all texts.
        full: Whether to take all figures of evaluation/full.py.
        shift: Another text to tell from this one by the ensemble's uncertainty: its path, or what `corruption`
            reads; implies ``full``.

    Raises:
        NTDistError: Checkpoint, settings or data cannot be used; on all ranks.
    """
    corrupted = None if shift is None else corruption(shift)
    path = _locate(path, mesh)
    config, num_samples = agree(mesh, lambda: _config(path, overrides, mesh.world_size), CheckpointError)
    model = build_model(config, mesh.place, mesh.device)

    def exchange(work):
        return agree_patiently(mesh, work, Heartbeat())  # preparing data takes as long as it takes

    family, digest = config.family, None
    if data is None:
        opened = family.open_data(config, mesh.is_main, exchange)
        if not any(override.startswith("data.") for override in overrides):
            digest = opened.digest  # other data by oversight: its tokenizer, and so the perplexity, would be another
    else:
        opened = family.open_other_data(config, data, exchange)
    against = None
    if corrupted:
        against = family.corrupted(opened, *corrupted)
    elif shift is not None:
        against = shift, family.open_other_data(config, shift, exchange).validation
    progress = checkpoint.load(path, config, mesh, model, None, data_digest=digest, verified=True)
    if config.train.precision == "bf16":
        model.bfloat16()
    if full or shift is not None:
        figures = all_figures(model, opened.validation, num_samples, mesh, config, against)
        figures["topology"] = topology_figures(path, mesh, weight_specs(config))
    else:
        figures = evaluate(model, _batches(opened.validation, num_samples, mesh, config), mesh, config)
    described = data or f"validation of data.source = {config.data.source!r}"
    return CheckpointEvaluation(str(path), progress.step, described, count_parameters(config), config.family, figures)


def corruption(shift: str) -> tuple[str, float] | None:
    """Which corruption is meant by ``corrupt`` or ``misspell``, perhaps with ``:SHARE``; None if ``shift`` is a path.

    Raises:
        RunError: It is empty, or the share is no number in (0, 1].
    """
    if not shift.strip():
        raise RunError(f"--shift {shift!r}: must be a path, or corrupt or misspell, perhaps with :SHARE")
    kind, colon, number = shift.partition(":")
    if not any(kind in family.corruptions for family in FAMILIES.values()):
        return None
    try:
        share = float(number) if colon else _SHARE
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise RunError(f"--shift {shift}: the share must be a number in (0, 1], as in {kind}:{_SHARE}")
    return kind, share


def _batches(samples: Sequence, num_samples: int, mesh: Mesh, config: Config) -> Iterable:
    return EvaluationBatches(
        samples,
        config.train.micro_batch_size,
        num_samples=num_samples,
        data_rank=mesh.data.rank,
        data_degree=mesh.data.degree,
    )


def all_figures(
    model: torch.nn.Module,
    samples: Sequence,
    num_samples: int,
    mesh: Mesh,
    config: Config,
    shift: tuple[str, Sequence] | None = None,
) -> dict:
    """What evaluation/full.py documents, but for the topology; `shift` is described and read. Collective.

    Args:
        model: As evaluation.evaluate.evaluate takes it.
        samples: The texts.
        num_samples: How many of the first samples to use; 0: all.
        mesh: From `join`.
        config: The model's settings, for these ranks.
        shift: What another text is called, and the text.

    Raises:
        DataError: There is too little text.
    """
    parts = [EverySecond(samples, num_samples, first) for first in (0, 1)]
    if not len(parts[1]):
        raise DataError(
            "--full and --shift need two sequences, to fit temperatures on one and measure them on the other"
        )
    fit, measure = (_batches(part, 0, mesh, config) for part in parts)
    figures, scores = evaluate_fully(model, fit, mesh, config, measure)
    if shift:
        against, texts = shift
        others, other_scores = evaluate_fully(model, _batches(texts, num_samples, mesh, config), mesh, config)
        figures["shift"] = {
            "against": against,
            "sequences": {"unshifted": len(scores), "shifted": len(other_scores)},
            **detection(scores, other_scores),
            "eval": others,
        }
    return figures


class EverySecond:
    """Every second one of the first samples, otherwise as they are.

    Args:
        samples: The samples.
        num_samples: How many of the first are looked at; 0, or more than there are: all.
        first: 0 for the samples 0, 2, 4, …, 1 for 1, 3, 5, …
    """

    def __init__(self, samples: Sequence, num_samples: int, first: int):
        self.samples = samples
        self.numbers = range(first, min(num_samples or len(samples), len(samples)), 2)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int):
        return self.samples[self.numbers[index]]

    def __getattr__(self, name: str):
        return getattr(self.samples, name)


def _locate(path: Path, mesh: Mesh) -> Path:
    is_one, path = agree(mesh, lambda: locate(path), CheckpointError, only_main=True)
    if is_one:
        verify(path, mesh)
        return path
    found = find(path, mesh=mesh)
    if found is None:
        raise CheckpointError(f"--checkpoint {path}: there is no checkpoint in it")
    return found


def _config(path: Path, overrides: Sequence[str], world_size: int) -> tuple[Config, int]:
    """The checkpoint's config for this number of ranks, and how many samples its run evaluates on (0: all)."""
    file, overrides = path / checkpoint.CONFIG, [*overrides, *_ONE_COPY]
    config = load_config(file, overrides, check_paths=False)
    num_samples = config.run.eval_batches * config.train.batch_size
    # the global batch of training need not divide by the ranks of an evaluation
    batch_size = config.train.micro_batch_size * world_size
    overrides.append(f"train.batch_size={batch_size}")
    return load_config(file, overrides, world_size=world_size, check_paths=False), num_samples
