"""How the density falls in training: in stages, each of which trains a model of its own density.

From ``sparsity.start_density`` s the density falls to ``sparsity.density`` f in n = ``density_stages`` prunings, the
last after a share ``density_until`` of the steps; after the k-th it is f + (s - f) (1 - k / n)³ (Zhu and Gupta, arXiv
1710.01878, eq. 1).
"""

from dataclasses import replace

from nt_dist.config.settings import Config


def prunings(config: Config) -> list[int]:
    """Return the steps after which weights are pruned, ascending; none where the density stays as it is."""
    whole = config.whole or config
    if whole.sparsity.start_density == 0:
        return []
    end, count = whole.sparsity.density_until * whole.train.steps, whole.sparsity.density_stages
    return sorted({max(1, round(end * number / count)) for number in range(1, count + 1)})


def stage_at(config: Config, step: int) -> Config:
    """Return the config, of a run or of one of its stages, with the density at which ``step`` is trained."""
    whole, steps = config.whole or config, prunings(config)
    if not steps:
        return config
    final, left = whole.sparsity.density, sum(step <= each for each in steps) / len(steps)
    density = final + (whole.sparsity.start_density - final) * left**3
    return replace(whole, sparsity=replace(whole.sparsity, density=density), whole=whole)


def last_step(config: Config) -> int:
    """The step at which this run leaves: ``run.stop_after``, or the end of training."""
    return min(config.run.stop_after or config.train.steps, config.train.steps)


def last_of_stage(config: Config, step: int) -> int:
    """The step up to which a model goes that has done ``step``: that of a pruning, or the last."""
    return min([last_step(config), *(each for each in prunings(config) if each > step)])
