"""One evaluation of a model on a fixed number of batches, the same on any number of data ranks.

Shapes: T trails, B samples, S positions, N tokens, V classes (padded ones are -inf and count for nothing).
"""

from collections.abc import Callable, Iterable

import torch

from nt_dist.data.loader import EvaluationBatches
from nt_dist.errors import DataError
from nt_dist.evaluation.predictions import Device, Sums, by_predictor, mean_of_probs, real_tokens
from nt_dist.model.place import Place

# Tokens whose logits are held in fp32 at once: bounds memory at [T, 1024, V] whatever the batch.
CHUNK_TOKENS = 1024
SOURCES = "sources"  # the key under which figures have those of each source of a mixture, by name


def evaluate(
    model: torch.nn.Module, batches: Iterable, mesh, config, passing: Callable[[Iterable], Iterable] = lambda each: each
) -> dict:
    """Runs the model over batches and sums the figures over the data ranks.

    Collective: every rank has to call it with the same number of batches of the same shape (padding has weight 0),
    because under ZeRO 3 a forward pass gathers weights.

    Args:
        model: inputs [B, ...] -> logits [T, B, S, V], of the trails and classes that this rank holds, or None on all
            stages of a pipeline but the last. Its training mode is restored.
        batches: data.batch.Batch each.
        mesh: Its device is the model's, its `data` ranks hold different batches.
        config: The model's.
        passing: What batches are given through, one source's after the other.

    Returns what the family's `figures` documents, equal on all ranks; a DataError where there is no real token. Of a
    mixture these are of samples that weigh as their shares say, and SOURCES has those of each source by name.
    """

    def summed(some: Iterable) -> EnsembleSums:
        sums = EnsembleSums(config.trails.count, mesh.device, mesh.place, config.family.wants_accuracy)
        stream(model, passing(some), mesh, sums.add)
        sums.reduce(mesh)
        return sums

    def figures(sums: EnsembleSums, **others: float) -> dict:
        return from_data(config, lambda: config.family.figures(sums.means() | others))

    parts = batches.by_source() if isinstance(batches, EvaluationBatches) else {}
    if not parts:
        return figures(summed(batches))
    found = {name: (summed(part), factor) for name, (part, factor) in parts.items()}
    whole = EnsembleSums(config.trails.count, mesh.device, has_accuracy=config.family.wants_accuracy)
    whole.sums = sum(factor * sums.sums for sums, factor in found.values())
    by_name = {name: figures(sums) for name, (sums, _) in found.items()}
    tokens = round(sum(float(sums.sums[-1]) for sums, _ in found.values()))
    return {**figures(whole, count=tokens), SOURCES: by_name}


def stream(model: torch.nn.Module, batches: Iterable, mesh, add: Callable) -> None:
    """Gives logits, targets and weights of each batch to `add`; the model's training mode is restored."""
    was_training = model.training
    model.eval()
    try:
        # no_grad, not inference_mode: ZeRO 3 gathers into the parameters themselves, which must stay ordinary tensors
        with torch.no_grad():
            for batch in batches:
                logits = model(batch.inputs.to(mesh.device))
                if logits is not None:
                    add(logits, batch.targets.to(mesh.device), batch.weights.to(mesh.device))
                del logits  # or two batches' logits would be alive at once
    finally:
        model.train(was_training)


def from_data(config, work: Callable):
    """Does `work`, whose ValueError is the data's fault."""
    try:
        return work()
    except ValueError as problem:
        raise DataError(f"data.validation = {config.data.validation!r}: {problem}") from None


class EnsembleSums(Sums):
    """Sums of the losses, the right answers where they are wanted, the disagreement and the weights.

    They are of all trails and classes, and the same on all ranks that hold parts of one model.
    """

    def __init__(self, num_trails: int, device: Device = "cpu", place: Place | None = None, has_accuracy: bool = False):
        assert num_trails >= 1
        # of each trail, of both means: nll and, if wanted, right answers; then disagreement and tokens
        super().__init__((num_trails + 2) * (1 + has_accuracy) + 2, device=device)
        self.num_trails, self.place, self.has_accuracy = num_trails, place or Place(), has_accuracy

    def add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds one batch, as :func:`real_tokens` takes it."""
        for *chunk, _ in real_tokens(logits, targets, weights, CHUNK_TOKENS):
            self._add(*chunk)

    def _add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        logits = logits.float()
        nll = self.place.all_trails(self._losses(logits, targets))  # [T, N]
        assert len(nll) == self.num_trails, f"{len(nll)} trails in place of {self.num_trails}"
        mean_logits = self.place.mean_of_trails(logits)[None]
        answers = self.place.all_trails(self.place.most_likely(logits))  # [T, N]
        figures = [nll, -mean_of_probs(-nll)[None], self._losses(mean_logits, targets)]
        if self.has_accuracy:
            probs = (logits - self.place.log_sum_exp(logits)[..., None]).exp()
            means = self.place.mean_of_trails(probs)[None], mean_logits
            figures.append(torch.cat([answers, *map(self.place.most_likely, means)]) == targets)
        figures += [disagreement(answers)[None], torch.ones_like(weights)[None]]
        self.sums += (torch.cat([each.double() for each in figures]) * weights).sum(1)

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Losses [T, N] of logits [T, N, V]."""
        return self.place.token_losses(logits[:, None], targets[None])[:, 0]

    def means(self) -> dict:
        """The figures of all samples added so far, for :meth:`nt_dist.config.family.Family.figures` to name.

        Returns:
            nll: mean negative log-likelihood in nats, {"trails": [T], "prob", "logit"}: of each trail, of the mean of
                their probabilities, of the softmax of the mean of their logits.
            accuracy: shares of samples whose most likely class is right, likewise; if wanted.
            disagreement: share of samples on which two trails' most likely classes differ, mean over pairs
                (Fort et al., arXiv 1912.02757, section 4, not normalised); 0 with one trail.
            count: sum of the weights.

        Raises:
            ValueError: no real sample was added.
        """
        *figures, count = self.sums.tolist()
        if count <= 0:
            raise ValueError("an evaluation needs at least one real token (of weight > 0)")
        *shares, differing = (each / count for each in figures)
        nll, accuracy = shares[: self.num_trails + 2], shares[self.num_trails + 2 :]
        return {
            "nll": by_predictor(nll),
            **({"accuracy": by_predictor(accuracy)} if accuracy else {}),
            "disagreement": differing,
            "count": int(count) if count == int(count) else count,
        }


def disagreement(answers: torch.Tensor) -> torch.Tensor:
    """Share of the pairs of trails that answer differently: float64 [N] in 0 .. 1, 0 with one trail; answers [T, N]."""
    trails = len(answers)
    return (answers[:, None] != answers).sum((0, 1)).double() / max(1, trails * (trails - 1))
