"""How an ensemble does on every corruption that its family has, at every level of each."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from nt_dist.config import Config
from nt_dist.data.samples import Samples
from nt_dist.evaluation.calibration import CalibrationSums
from nt_dist.evaluation.evaluate import stream
from nt_dist.evaluation.predictions import by_predictor, predictions
from nt_dist.parallel.mesh import Mesh
from nt_dist.progress import ProgressBar

FIGURES = ("accuracy", "nll", "ece")


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
    corruptions, num_trails = config.family.corruptions, config.trails.count

    def measure(samples: Samples) -> np.ndarray:
        sums = CalibrationSums(num_trails + 2, mesh.device)

        def add(*batch: torch.Tensor) -> None:
            for chunk in predictions(*batch, num_trails, mesh.place):
                sums.add(chunk)

        stream(model, batches_of(samples), mesh, add)
        sums.reduce(mesh)
        figures = sums.result()
        return np.array([figures[name] for name in FIGURES])  # [3, P]

    def named(figures: np.ndarray) -> dict:
        return by_predictor(dict(zip(FIGURES, figures.tolist(), strict=True)))

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
