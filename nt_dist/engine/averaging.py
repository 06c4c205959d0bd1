"""Weights averaged over the last part of training, with which evaluations and exports compute.

After each step each average moves by a share of its way to the value: after the n-th step behind ``train.average_from``

    a ← a + (w − a) · max(1 − decay, 1 / n)

With decay 1 that is the mean of the last iterates (Polyak and Juditsky, SIAM J. Control Optim. 30, 1992; Izmailov et
al., arXiv 1803.05407); below, an exponential one that begins as the mean does, so that it knows nothing of what came
before. Until then the average is the value.

An average lies beside its value as moments do: partitioned, saved, resharded and rewired with it. A slot that gets a
new place in an update begins anew, at 0 as its value does: what is taken is the mean of the dense matrices, at the
places that are active now. Statistics of a batch norm are averaged by the same rule (as timm's ModelEma does), which
needs no pass over the training samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from nt_dist.config import Config
from nt_dist.config.settings import AVERAGE
from nt_dist.engine.optimizer_state import OptimizerState
from nt_dist.model.trails import statistics_of, weights_of


def average_share(config: Config, step: int) -> float:
    """Return the share by which averages move towards the values after optimizer step ``step``, counted from 1."""
    taken = step - int(config.train.average_from * config.train.steps)
    return max(1.0 - config.train.average_decay, 1.0 / max(taken, 1))


def average_weights(config: Config, model: nn.Module, optimizer_state: OptimizerState, step: int) -> None:
    """Take what step ``step``, which was applied, has made of weights and statistics into their averages."""
    if AVERAGE in optimizer_state.moments:
        share = average_share(config, step)
        optimizer_state.move_averages(share)
        for statistic in statistics_of(model).values():
            statistic.move_average(share)


@contextmanager
def averaged(model: nn.Module, optimizer_state: OptimizerState) -> Iterator[None]:
    """Compute with averages, where there are any, within the context. A collective of the data ranks at both ends.

    An error leaves them there, as it ends the run: other ranks may stand in another collective.
    """
    _swap(model, optimizer_state)
    yield
    _swap(model, optimizer_state)


def _swap(model: nn.Module, optimizer_state: OptimizerState) -> None:
    if AVERAGE not in optimizer_state.moments:
        return
    for weight in weights_of(model).values():
        state = optimizer_state.read(weight)
        state["value"], state[AVERAGE] = state[AVERAGE], state["value"]
        optimizer_state.write(weight, state)
    for statistic in statistics_of(model).values():
        statistic.values, statistic.average = statistic.average, statistic.values
