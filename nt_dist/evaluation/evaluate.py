"""One evaluation of a model on a fixed number of batches, the same on any number of data ranks."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch

from nt_dist.errors import DataError
from nt_dist.evaluation.full import FullSums
from nt_dist.evaluation.metrics import EnsembleSums

T = TypeVar("T")


def evaluate(model: torch.nn.Module, batches: Iterable, mesh, config) -> dict:
    """Runs the model over batches and sums the figures over the data ranks.

    Collective: every rank has to call it with the same number of batches of the same shape (padding has weight 0),
    because under ZeRO 3 a forward pass gathers weights.

    Args:
        model: inputs [B, ...] -> logits [T, B, S, V], of the trails and classes that this rank holds, or None on all
            stages of a pipeline but the last; a TrailsModel, a PipelineModel, or the module inside a DeepSpeed engine.
            Its training mode is restored.
        batches: data.batch.Batch each.
        mesh: parallel.mesh.Mesh; its device is the model's, its `data` ranks hold different batches.
        config: The Config of the model (trails.count).

    Returns:
        What the family's `figures` documents; equal on all ranks.

    Raises:
        DataError: the batches hold no real token.
    """
    sums = EnsembleSums(config.trails.count, mesh.device, mesh.place)
    _stream(model, batches, mesh, sums)
    sums.reduce(mesh)
    return _from_data(config, lambda: config.family.figures(sums.means()))


def evaluate_fully(
    model: torch.nn.Module, batches: Iterable, mesh, config, then: Iterable | None = None
) -> tuple[dict, np.ndarray]:
    """Runs the model once over batches for all figures there are; otherwise as `evaluate`.

    Args:
        then: More batches: temperatures are fitted on `batches` and measured on these, and all other figures are of
            both. None: no temperatures.

    Returns:
        What FullSums.result documents, and the scores of the samples (see shift.SequenceScores), which shift.detection
        compares with those of other data; both equal on all ranks.
    """
    sums = FullSums(config.trails.count, mesh.device, mesh.place, with_temperatures=then is not None)
    _stream(model, batches, mesh, sums)
    if then is not None:
        _from_data(config, lambda: sums.fit_temperatures(mesh))
        _stream(model, then, mesh, sums)
    sums.reduce(mesh)
    return _from_data(config, lambda: sums.result(config.family)), sums.scores.gather(mesh)


def _stream(model: torch.nn.Module, batches: Iterable, mesh, sums) -> None:
    was_training = model.training
    model.eval()
    try:
        # no_grad, not inference_mode: ZeRO 3 gathers into the parameters themselves, which must stay ordinary tensors
        with torch.no_grad():
            for batch in batches:
                logits = model(batch.inputs.to(mesh.device))
                if logits is not None:
                    sums.add(logits, batch.targets.to(mesh.device), batch.weights.to(mesh.device))
                del logits  # or two batches' logits would be alive at once
    finally:
        model.train(was_training)


def _from_data(config, work: Callable[[], T]) -> T:
    """Does `work`, whose ValueError is the data's fault."""
    try:
        return work()
    except ValueError as problem:
        raise DataError(f"data.validation = {config.data.validation!r}: {problem}") from None
