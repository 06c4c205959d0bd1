"""Floating-point operations of one token, from the table of weights: an explicit formula, no profiler.

A product of one token with a matrix of n entries takes 2 n operations forward and 4 n backward, so 6 n in training
(Kaplan et al., arXiv 2001.08361, section 2.1). What a layer does beyond, as attention's products with keys and values,
its family counts. Lookups, norms, rotary embedding, softmax and activations are left out, and so are padding and what
activation checkpointing computes twice. The trunk is counted once however many trails share it.

*Dense-equivalent* counts all entries of every matrix, as this program multiplies them; *sparse-effective* active ones
only, with dense gradients in the steps that grow by gradient (RigL, arXiv 1911.11134, appendix H).
"""

from dataclasses import dataclass
from itertools import pairwise

from nt_dist.config import Config
from nt_dist.config.stages import prunings, stage_at
from nt_dist.model.weights import weight_specs
from nt_dist.sparsity.rules import last_update_step


@dataclass(frozen=True)
class TokenFlops:
    """Operations of one input token, over all trails."""

    inference_dense: int  # dense-equivalent, of predicting from it
    inference_sparse: int  # sparse-effective, of predicting from it
    regrowth: float  # training, mean over steps of what updates' dense gradients cost beyond sparse ones

    @property
    def training_dense(self) -> int:
        """Dense-equivalent operations of training on it."""
        return 3 * self.inference_dense

    @property
    def training_sparse(self) -> float:
        """Sparse-effective operations of training on it."""
        return 3 * self.inference_sparse + self.regrowth


def token_flops(config: Config) -> TokenFlops:
    """Count the operations of one token for the whole model, whatever rank holds it."""
    dense = sparse = 0
    trails: dict[str, int] = {}  # by layer
    for spec in weight_specs(config).values():
        trails[spec.layer] = max(trails.get(spec.layer, 0), spec.trails)
        real = spec.trails * spec.valid * spec.slice_elements
        dense += 2 * spec.uses * real
        sparse += 2 * spec.uses * (spec.trails * spec.total_slots() if spec.is_sparse else real)
    extra = sum(count * config.family.extra_flops(config, layer) for layer, count in trails.items())
    return TokenFlops(dense + extra, sparse + extra, _regrowth(config, dense - sparse))


def training_flops(config: Config) -> float:
    """Return the sparse-effective operations of training on one token, mean over the steps of a run whose density may
    fall."""
    steps = config.train.steps
    stages = pairwise([0, *prunings(config), steps])
    return sum((end - start) * token_flops(stage_at(config, end)).training_sparse for start, end in stages) / steps


def _regrowth(config: Config, inactive: int) -> float:
    """Mean over a run's steps of the matrix gradients' inactive entries, which only an update by gradient needs."""
    settings = config.sparsity
    if not settings.uses_gradients or settings.density == 1:
        return 0.0
    last = min(last_update_step(config.train.steps, settings.stop_fraction), config.train.steps - 1)
    updates = last // settings.update_every
    share = 1 / config.accumulation_steps if settings.regrow_from == "last_micro_batch" else 1.0
    return inactive * share * updates / config.train.steps
