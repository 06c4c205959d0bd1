"""Where a pipeline is cut: stages of equal work, from the config's shapes alone.

The work of a layer on one micro-batch of N tokens, on one rank of the trail axis and once for each trail that it has
there: 6 operations for each entry of a matrix and token, three times the family's extra_flops, and what moving a weight
costs whatever N is. A trunk block counts once, with its share of the N tokens where trail ranks split them; the
embedding, which multiplies nothing, counts by its bytes alone.
"""

import functools
import itertools
import math

from nt_dist.config.settings import Config
from nt_dist.model.trails import FORK, layer_names
from nt_dist.model.weights import weight_specs

_BYTES_MOVED = 4 * 4  # an entry: built, read forward, read backward, its gradient written; four bytes each
_OPERATIONS_PER_BYTE = 50  # what a processor does while it moves one; CPUs are below and GPUs in bf16 above


def layer_work(config: Config) -> list[float]:
    """Return the work of each layer of :func:`layer_names`, in operations."""
    work, extra = dict.fromkeys(layer_names(config), 0.0), {}
    ranks, micro_batch = config.parallel.trail, config.train.micro_batch_size * config.family.positions(config)
    for spec in weight_specs(config).values():
        trails = spec.trails / ranks if spec.in_trail else spec.trails
        tokens = micro_batch / ranks if config.splits_trunk and not spec.in_trail else micro_batch
        entries = trails * math.prod(spec.shape)
        work[spec.layer] += entries * (_BYTES_MOVED * _OPERATIONS_PER_BYTE + 6 * spec.uses * tokens)
        extra[spec.layer] = 3 * trails * config.family.extra_flops(config, spec.layer) * tokens
    return [operations + extra.get(layer, 0.0) for layer, operations in work.items()]


def stage_bounds(config: Config) -> list[int]:
    """Return where the ``parallel.pipe`` stages begin and end in the list of layers: stage p is [p] to [p + 1].

    The largest work of a stage is as small as can be. Every stage has a matrix and a norm, so that all have the same
    groups of parameters, and the fork stays with the layer behind it, so that what is sent is not yet expanded.
    """
    names, before = layer_names(config), [0.0, *itertools.accumulate(layer_work(config))]
    # The places where a stage may begin: at a block (at the fork before it), or at the output.
    starts = [at for at in range(2, len(names)) if names[at - 1] != FORK]
    assert config.parallel.pipe <= len(starts) + 1, f"{config.parallel.pipe} stages of {len(starts) + 1} pieces"

    @functools.cache
    def best(end: int, count: int) -> tuple[float, list[int]]:
        """The smallest largest stage of ``count`` that end at ``end``, and where they begin and end."""
        if count == 1:
            return before[end], [0, end]
        options = ((best(start, count - 1), start) for start in starts[count - 2 :] if start < end)
        return min((max(most, before[end] - before[start]), [*ends, end]) for (most, ends), start in options)

    return best(len(names), config.parallel.pipe)[1]
