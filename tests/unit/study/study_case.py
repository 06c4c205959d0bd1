"""What tests of studies share: results with all figures there are, without a model."""

import torch

from nt_dist.evaluation.full import FullSums
from nt_dist.families import DEFAULT
from nt_dist.study.results import Result
from nt_dist.study.tables import Row
from tests.unit.evaluation.prediction_case import ALONE


def figures(num_trails, seed=0, bias=2.0):
    """All figures of trails that draw their logits; the higher ``bias``, the better they know the targets."""
    generator = torch.Generator().manual_seed(seed)
    sums = FullSums(num_trails, with_temperatures=True)
    for part in range(2):
        logits = torch.randn(num_trails, 4, 6, 12, generator=generator)
        targets = torch.randint(12, (4, 6), generator=generator)
        logits += bias * torch.nn.functional.one_hot(targets, 12)
        sums.add(logits, targets, torch.ones(4, 6))
        if part == 0:
            sums.fit_temperatures(ALONE)
    topology = None
    if num_trails > 1:
        weights = {
            f"blocks.{block}.{kind}": {"density": 0.5, "overlap": 0.4 + 0.1 * block, "ever_active": 0.7}
            for block in range(2)
            for kind in ("attention.query", "mlp.gate")
        }
        weights["embedding"] = {"density": 0.5, "overlap": None, "ever_active": 0.6}
        topology = {"checkpoints": [5, 10], "overlap": 0.45, "overlap_chance": 0.33, "density": 0.5}
        topology |= {"ever_active": 0.65, "weights": weights}
    return {**sums.result(DEFAULT), "topology": topology}


def result(name, num_trails, weights, digest="abc", **changes):
    """A result of round costs."""
    values = {
        "name": name,
        "checkpoints": [f"runs/{name}/checkpoints/step-00000010"],
        "trails": num_trails,
        "weights_stored": weights,
        "weights_dense": 2 * weights,
        "training_flops_sparse": 6.0 * weights,
        "training_flops_dense": 12 * weights,
        "inference_flops_sparse": 2 * weights,
        "inference_flops_dense": 4 * weights,
        "steps": 10,
        "tokens_seen": 5000,
        "training_seconds": 65.0,
        "data_digest": digest,
        "figures": figures(num_trails, seed=weights),
    }
    return Result(**{**values, **changes})


def rows(results):
    """A row for each result: models of one seed."""
    return [Row(each.name, [each]) for each in results]
