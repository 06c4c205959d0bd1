"""Weights & Biases and MLflow beside TensorBoard, where ``run.loggers`` names them: the same figures, the same names.

Each is a package of its own, which is imported where it is asked for. A run that goes on from a checkpoint continues
its run there, whose id ``run.dir`` keeps. What a service refuses is one warning and ends nothing.
"""

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nt_dist.errors import RunError
from nt_dist.files import write_whole
from nt_dist.messages import LOGGER

IDS = "loggers.json"  # in a run's folder
_PROJECT = "nt_dist"
_MOST_PARAMETERS = 100  # of MLflow's in one call


class WandbRun:
    """A run of Weights & Biases; its client's own variables hold (WANDB_MODE=offline, WANDB_PROJECT and so on)."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], kept: str | None):
        import wandb

        self.id = kept or uuid.uuid4().hex[:8]
        where = {"project": os.environ.get("WANDB_PROJECT", _PROJECT), "dir": str(folder), "name": folder.name}
        self._run = wandb.init(id=self.id, resume="allow", config=dict(settings), **where)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A point in the curve of each figure."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Hands over what is left."""
        self._run.finish()


class MLflowRun:
    """A run of MLflow, at MLFLOW_TRACKING_URI, or else in the folder mlruns of ``run.dir``."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], kept: str | None):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without a server the folder is a file store
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri())
        if kept:
            self._client.update_run(kept, status="RUNNING")
            self.id = kept
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(where, run_name=folder.name).info.run_id
        parameters = [Param(key, str(value)) for key, value in settings.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self.id, params=parameters[first : first + _MOST_PARAMETERS])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A point in the curve of each figure."""
        now = int(1000 * time.time())
        self._client.log_batch(self.id, [self._metric(name, value, now, step) for name, value in figures.items()])

    def close(self) -> None:
        """Says that nothing more comes for now."""
        self._client.set_terminated(self.id)


TRACKERS = {"wandb": WandbRun, "mlflow": MLflowRun}


def check_loggers(loggers: Iterable[str]) -> None:
    """RunError where a package is missing."""
    for name in TRACKERS.keys() & set(loggers):
        if importlib.util.find_spec(name) is None:
            raise RunError(f'run.loggers names {name!r}, which is not installed: pip install "nt_dist[{name}]"')


class Trackers:
    """All that ``loggers`` name; a run that begins anew (``last_step`` 0) is a new one there too."""

    def __init__(self, loggers: Iterable[str], folder: Path, settings: Mapping[str, Any], last_step: int):
        place, self._open = folder / IDS, {}
        try:
            kept = json.loads(place.read_text(encoding="utf-8")) if last_step else {}
        except (OSError, ValueError):
            kept = {}
        for name in loggers:
            if name in TRACKERS:
                self._try(name, lambda name=name: self._begin(name, folder, settings, kept.get(name)))
        ids = {name: each.id for name, each in self._open.items()}
        if ids and ids != kept:
            try:
                write_whole(place, json.dumps(ids) + "\n")
            except RunError as problem:
                LOGGER.warning("%s; a run that goes on will be a new one in %s", problem, ", ".join(ids))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A point in the curve of each figure, everywhere."""
        for name, each in list(self._open.items()):
            self._try(name, lambda each=each: each.log(step, figures))

    def close(self) -> None:
        """Hands over what is left."""
        for name, each in list(self._open.items()):
            self._try(name, each.close)

    def _begin(self, name: str, folder: Path, settings: Mapping[str, Any], kept: str | None) -> None:
        self._open[name] = TRACKERS[name](folder, settings, kept)

    def _try(self, name: str, work: Any) -> None:
        try:
            work()
        except Exception as problem:  # the clients promise no common class
            self._open.pop(name, None)
            words = " ".join(str(problem).split())
            LOGGER.warning("run.loggers: %s is left out from here on: %s: %s", name, type(problem).__name__, words)
