"""A run's data: opened on all ranks together, and what a run that goes on with other data keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.errors import CheckpointError
from nt_dist.messages import LOGGER
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
    data = config.family.open_data(config, mesh.is_main, prepare)
    check_alike(mesh, "data", {"its digest": data.digest})
    return data


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
