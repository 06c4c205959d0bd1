"""A run's data: opened on all ranks together, and what a run that goes on with other data keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.data.mixture import Mixture
from nt_dist.errors import CheckpointError, DataError
from nt_dist.messages import LOGGER
from nt_dist.parallel.agree import agree
from nt_dist.parallel.handshake import check_alike
from nt_dist.parallel.mesh import Mesh
from nt_dist.training.signals import ExitRequest
from nt_dist.watch.watching import agree_patiently

T = TypeVar("T")


def open_data(config: Config, mesh: Mesh, exit_request: ExitRequest) -> Any:
    """Opens the run's data; what has to be prepared takes as long as it takes and can be stopped by a signal."""

    def prepare(work: Callable[[], T]) -> T:
        def interruptible() -> T:
            with exit_request.interrupts_work():
                return work()

        return agree_patiently(mesh, interruptible, exit_request.heartbeat)

    exit_request.heartbeat.enter("preparing data")
    data = agree(mesh, lambda: config.family.open_data(config, mesh.is_main, prepare), DataError)
    check_alike(mesh, "data", {"its digest": data.digest})
    return data


def passes(samples: Any, consumed: int) -> dict[str, Any]:
    """How often a training has gone over its samples; of a mixture also over each source's, and the share drawn."""
    figures: dict[str, Any] = {"epochs": consumed / len(samples)}
    if isinstance(samples, Mixture):
        drawn = samples.drawn_before(consumed)
        figures["epochs_of_source"] = {name: count / len(samples.parts[name]) for name, count in drawn.items()}
        figures["share_of_source"] = {name: count / max(1, consumed) for name, count in drawn.items()}
    return figures


def say_sources(samples: Any, consumed: int) -> None:
    """Log how often a training of so many samples goes over each source of a mixture."""
    figures = passes(samples, consumed)
    for name, epochs in figures.get("epochs_of_source", {}).items():
        size, share = f"{len(samples.parts[name]):,}", figures["share_of_source"][name]
        LOGGER.info("  source %s: %.4g of the samples drawn, %.3g epochs of its %s", name, share, epochs, size)


def on_other_data(found: Path, state: TrainingState, data: Any) -> TrainingState:
    """Where a run stands that goes on from the checkpoint ``found`` with other data: at their first sample, so that no
    sample of theirs is left out yet. CheckpointError if a model that was trained on the old ones does not fit them.
    """
    for key, now in data.identity.items():
        if (before := state.extra.get(key, now)) != now:
            raise CheckpointError(f"{found}: was trained with {key} {before!r}; the other data have {now!r}")
    LOGGER.warning("step %d was trained on other data; the order of these begins with sample 0", state.step)
    bad_steps = state.extra.get("bad_steps", {}) | {"left_out": []}
    return replace(state, consumed_samples=0, data_digest=data.digest, extra=state.extra | {"bad_steps": bad_steps})
