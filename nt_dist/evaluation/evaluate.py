"""One evaluation of a model on a fixed number of batches, token-weighted and the same on any number of data ranks."""

from collections.abc import Iterable

import torch

from nt_dist.errors import DataError
from nt_dist.evaluation.metrics import EnsembleSums
from nt_dist.parallel.place import MeshPlace


def evaluate(model: torch.nn.Module, batches: Iterable, mesh, config) -> dict:
    """Runs the model over batches and sums the figures over the data ranks.

    Collective: every rank has to call it with the same number of batches of the same shape (padding has weight 0),
    because under ZeRO 3 a forward pass gathers weights.

    Args:
        model: tokens [B, S] -> logits [T, B, S, V], of the trails and pieces that this rank holds, or None on all
            stages of a pipeline but the last; a TrailsModel, a PipelineModel, or the module inside a DeepSpeed engine.
            Its training mode is restored.
        batches: Have tokens [B, S], targets [B, S] and weights [B, S] (data.loader.Batch).
        mesh: parallel.mesh.Mesh; its device is the model's, its `data` ranks hold different batches.
        config: The Config of the model (trails.count).

    Returns:
        What EnsembleSums.result documents; equal on all ranks.

    Raises:
        DataError: the batches hold no real token.
    """
    sums = EnsembleSums(config.trails.count, mesh.device, MeshPlace(mesh))
    was_training = model.training
    model.eval()
    try:
        # no_grad, not inference_mode: ZeRO 3 gathers into the parameters themselves, which must stay ordinary tensors
        with torch.no_grad():
            for batch in batches:
                logits = model(batch.tokens.to(mesh.device))
                if logits is not None:
                    sums.add(logits, batch.targets.to(mesh.device), batch.weights.to(mesh.device))
                del logits  # or two batches' logits would be alive at once
    finally:
        model.train(was_training)
    sums.reduce(lambda tensor: mesh.all_reduce(tensor, ("pipe", "data")))
    try:
        return sums.result()
    except ValueError as problem:
        raise DataError(f"data.validation = {config.data.validation!r}: {problem}") from None
