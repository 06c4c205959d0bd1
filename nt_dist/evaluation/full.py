"""All figures of an ensemble, and the keys under which they are written.

`FullSums.result` gives a dictionary, which tools/evaluate.py --full writes as "eval" in its JSON:

    ppl_trails, ppl_ensemble_prob, ppl_ensemble_logit, disagreement, ensemble_gain, tokens
                    as without --full: the family's `figures`, here of a language model
    nll             negative log-likelihood in nats a token
    accuracy        share of tokens whose likeliest class is right
    top5            share of tokens whose class is among the five likeliest; of a classifier with more than five classes
    calibration     ece, adaptive_ece, brier; and
                    temperature: value (fitted on every second sequence), fit_tokens; measured on the other sequences:
                    tokens, and before and after, each with nll, accuracy, brier, ece, adaptive_ece (and top5)
    reliability     edges: the 16 borders of 15 bins of confidence; and for each predictor
                    {count, confidence, accuracy}: lists of 15 (an empty bin: None, None)
    diversity       uncertainty.DiversitySums.result

Figures of predictors (nll, accuracy, ece, adaptive_ece, brier, value, …, the reliability's dictionaries) are
{"trails": [T of them], "prob": of the mean of probabilities, "logit": of the mean of logits}.

Beside them the evaluation of a checkpoint (evaluation/evaluate_checkpoint.py) puts

    topology        checkpoints: the steps of the checkpoints that were read, this one the last;
                    overlap, overlap_chance: topology.Overlap's jaccard and chance (None with one trail);
                    overlap_matrix [T][T]: Jaccard index of two trails' topologies (None with one trail);
                    density, ever_active: share of the sparse weights' entries active here, and in any checkpoint;
                    churn: [{from, to, share}], share of the slots that moved between one checkpoint and the next;
                    weights: {name: {density, overlap, ever_active, churn}}, of each sparse weight; churn as above
    shift           (with --shift) against: what was shifted; samples: {unshifted, shifted}; auroc, aupr, fpr95 of
                    uncertainty.detection; eval: all of the above but topology, temperature and shift, on the shifted
                    samples (None where their targets are not the model's), of answers among the classes that these have
    corruptions     (with --corruptions) evaluate_checkpoint.corruption_figures
"""

from collections.abc import Iterable

import numpy as np
import torch

from nt_dist.config.family import Family
from nt_dist.evaluation.calibration import BINS, TOP, CalibrationSums, TemperatureFit
from nt_dist.evaluation.evaluate import EnsembleSums, from_data, stream
from nt_dist.evaluation.predictions import Device, by_predictor, predictions
from nt_dist.evaluation.uncertainty import DiversitySums, SequenceScores
from nt_dist.model.place import Place


def evaluate_fully(
    model: torch.nn.Module, batches: Iterable, mesh, config, then: Iterable | None = None
) -> tuple[dict, np.ndarray]:
    """Runs the model once over batches for all figures there are; otherwise as `evaluate`.

    ``then`` are more batches: temperatures are fitted on the first and measured on these, and all other figures are of
    both. Returns this module's figures and the samples' scores, for uncertainty.detection; both equal on all ranks.
    """
    num_classes = config.family.num_outputs(config) if config.family.wants_accuracy else 0
    sums = FullSums(config.trails.count, mesh.device, mesh.place, then is not None, num_classes)
    stream(model, batches, mesh, sums.add)
    if then is not None:
        from_data(config, lambda: sums.fit_temperatures(mesh))
        stream(model, then, mesh, sums.add)
    sums.reduce(mesh)
    return from_data(config, lambda: sums.result(config.family)), sums.scores.gather(mesh)


class FullSums:
    """Streaming sums of all figures over tokens; their memory does not grow with the data, but for SequenceScores.

    Temperatures need two parts of the data: those added before `fit_temperatures` and those after it.
    ``with_temperatures`` says that it will be called; ``num_classes`` are a classifier's, whose answers among the TOP
    likeliest count where there are more; the other arguments are EnsembleSums'.
    """

    def __init__(
        self,
        num_trails: int,
        device: Device = "cpu",
        place: Place | None = None,
        with_temperatures: bool = False,
        num_classes: int = 0,
    ):
        self.num_trails, self.place = num_trails, place or Place()
        self.ensemble = EnsembleSums(num_trails, device, place, has_accuracy=True)
        self.diversity = DiversitySums(num_trails, device)
        self.scores = SequenceScores(device)
        # of the part at hand; of the part before it; of the part at hand with its temperatures
        wanted = num_trails + 2, device, num_classes > TOP
        self.calibration, self.fitted_on, self.tempered = (CalibrationSums(*wanted) for _ in range(3))
        self.fit = TemperatureFit(num_trails + 2, device) if with_temperatures else None
        self.temperatures: list[float] = []

    def add(self, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds one batch, as :func:`nt_dist.evaluation.predictions.real_tokens` takes it."""
        self.ensemble.add(logits, targets, weights)
        self.scores.begin(len(targets))
        for chunk in predictions(logits, targets, weights, self.num_trails, self.place):
            for sums in (self.diversity, self.scores, self.calibration):
                sums.add(chunk)
            if self.temperatures:
                self.tempered.add(chunk.tempered(self.temperatures))
            elif self.fit:
                self.fit.add(chunk)

    def fit_temperatures(self, mesh) -> None:
        """Ends the part on which temperatures are fitted, or a ValueError if it is empty; the next measures them."""
        self.fit.reduce(mesh)
        self.temperatures = self.fit.temperatures()
        self.calibration, self.fitted_on = self.fitted_on, self.calibration

    def reduce(self, mesh) -> None:
        """Adds up the sums of all ranks that saw other tokens."""
        for sums in (self.ensemble, self.diversity, self.calibration, self.fitted_on, self.tempered):
            sums.reduce(mesh)

    def result(self, family: Family) -> dict:
        """The figures of all tokens added so far, as documented above; a ValueError where a part has no real token."""
        figures = family.figures(self.ensemble.means())
        total = self.calibration + self.fitted_on
        scores = by_predictor(total.result())
        calibration = {name: scores[name] for name in ("ece", "adaptive_ece", "brier")}
        if self.temperatures:
            if self.calibration.tokens <= 0:
                raise ValueError("a temperature needs at least one real token (of weight > 0) to be measured on")
            calibration["temperature"] = {
                "value": by_predictor(self.temperatures),
                "fit_tokens": self.fitted_on.tokens,
                "tokens": self.calibration.tokens,
                "before": by_predictor(self.calibration.result()),
                "after": by_predictor(self.tempered.result()),
            }
        edges = [number / BINS for number in range(BINS + 1)]
        return {
            **figures,
            **{name: scores[name] for name in ("nll", "accuracy", "top5") if name in scores},
            "calibration": calibration,
            "reliability": {"edges": edges, **by_predictor(total.reliability())},
            "diversity": self.diversity.result(),
        }
