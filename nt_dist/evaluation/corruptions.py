"""How an ensemble does on every corruption that its family has, at every level of each."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch

from nt_dist.config import Config
from nt_dist.data.samples import Samples
from nt_dist.evaluation.calibration import CalibrationSums
from nt_dist.evaluation.evaluate import stream
from nt_dist.evaluation.full import by_predictor
from nt_dist.evaluation.predictions import predictions
from nt_dist.parallel.mesh import Mesh
from nt_dist.progress import ProgressBar


def corruption_figures(
    model: torch.nn.Module, opened: Any, mesh: Mesh, config: Config, batches_of: Callable[[Samples], Iterable]
) -> dict:
    """Evaluates on corrupted samples. Collective.

    Args:
        model: As :func:`nt_dist.evaluation.evaluate.evaluate` takes it, and mesh and config.
        opened: Data whose validation samples are corrupted.
        batches_of: Makes the batches of an evaluation.

    Returns:
        level: what a level is called; levels: those taken.
        clean, mean: of the samples as they are, and the mean over all kinds and levels.
        kinds: {kind: one for each level}.
        All of these are {"accuracy", "nll", "ece"}, each by predictor as evaluation/full.py has it.
    """
    corruptions, found = config.family.corruptions, {}

    def measure(samples: Samples) -> dict:
        sums = _Sums(config.trails.count, mesh)
        stream(model, batches_of(samples), mesh, sums)
        sums.calibration.reduce(mesh)
        figures = by_predictor(sums.calibration.result())
        return {name: figures[name] for name in ("accuracy", "nll", "ece")}

    total = len(corruptions.kinds) * len(corruptions.levels)
    with ProgressBar(total, title="corruptions") if mesh.is_main else nullcontext() as bar:
        clean = measure(opened.validation)
        for kind in corruptions.kinds:
            found[kind] = []
            for level in corruptions.levels:
                found[kind].append(measure(config.family.corrupted(opened, kind, level)[1]))
                if bar:
                    bar.update(sum(map(len, found.values())), kind)
    mean = _mean([each for levels in found.values() for each in levels])
    facts = {"level": corruptions.level, "levels": list(corruptions.levels)}
    return {**facts, "clean": clean, "mean": mean, "kinds": found}


class _Sums:
    """What an evaluation adds to; accuracy, likelihood and calibration need no more."""

    def __init__(self, num_trails: int, mesh: Mesh):
        self.num_trails, self.place = num_trails, mesh.place
        self.calibration = CalibrationSums(num_trails + 2, mesh.device)

    def add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        for chunk in predictions(logits, targets, weights, self.num_trails, self.place):
            self.calibration.add(chunk)


def _mean(figures: list) -> Any:
    """Mean over numbers, or over what stands at the same place of lists and dictionaries."""
    first = figures[0]
    if isinstance(first, dict):
        return {key: _mean([each[key] for each in figures]) for key in first}
    if isinstance(first, list):
        return [_mean(list(each)) for each in zip(*figures, strict=True)]
    return sum(figures) / len(figures)
