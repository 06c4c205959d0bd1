"""Trains the runs of a plan, one after the other, each by train.py in processes of its own; tunes its models."""

import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nt_dist.checkpoint.weights import check_config
from nt_dist.config.family import Headline
from nt_dist.config.stages import last_step
from nt_dist.errors import RunError
from nt_dist.study.plan import Plan, PlannedModel, PlannedRun
from nt_dist.study.results import newest_whole
from nt_dist.training.metrics_log import METRICS, last_evaluation

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """What has been trained of a model of a plan."""

    runs: list[PlannedRun]  # of what is best, one a seed
    best: str = ""  # in words, as ``PlannedModel.tried`` has it
    tried: Mapping[str, Headline] = field(default_factory=dict)  # where there was a choice


def train_plan(plan: Plan, launcher: str = "") -> None:
    """Train what is missing of a plan, model by model: each is tuned, and the best trained with its other seeds."""
    for run in plan.runs.values():
        is_done(run)  # a folder with other settings is told before anything is trained
    for number, model in enumerate(plan.models.values(), 1):
        _LOGGER.info("== %s (%d of %d) ==", model.name, number, len(plan.models))
        train_missing([runs[0] for runs in model.tried.values()], launcher)
        train_missing(model.tried[trained(model).best], launcher)


def trained(model: PlannedModel) -> TrainedModel:
    """Say what has been trained of a model, and what was best of it with the first seed.

    That goes by the mean of probabilities, as each run's own last evaluation has it. No runs where none is done.
    """
    done = {what: [run for run in runs if is_done(run)] for what, runs in model.tried.items() if is_done(runs[0])}
    if len(model.tried) == 1 or not done:
        return TrainedModel(*next(((runs, what) for what, runs in done.items()), ([],)))
    headlines = {what: _headline(runs[0]) for what, runs in done.items()}
    best = min(done, key=lambda what: headlines[what].prob * (1 if headlines[what].lower_is_better else -1))
    return TrainedModel(done[best], best, headlines)


def _headline(run: PlannedRun) -> Headline:
    if record := last_evaluation(run.dir / METRICS):
        return run.config.family.headline(record["eval"])
    raise RunError(f"{run.dir / METRICS}: has no evaluation, by which what was tried is compared")


def train_missing(runs: Collection[PlannedRun], launcher: str = "") -> None:
    """Train, or continue, every run that has not come to its last step.

    ``launcher`` stands before ``train.py`` on its command line, as in "deepspeed --num_gpus 2"; without one it is this
    interpreter, one rank. A RunError where a run failed, or was asked to leave (which this process passes on to it); a
    CheckpointError where a run's folder holds a checkpoint of other settings.
    """
    missing = [run for run in runs if not is_done(run)]
    if done := len(runs) - len(missing):
        _LOGGER.info("%d of %d runs have been trained before", done, len(runs))
    for number, run in enumerate(missing, 1):
        _LOGGER.info("== training %s (%d of %d) ==", run.name, number, len(missing))
        _train(run, launcher)


def is_done(run: PlannedRun) -> bool:
    """Whether the newest checkpoint of a run is of its last step; a CheckpointError where it is of other settings."""
    newest = newest_whole(run.dir)
    if newest:
        check_config(newest.path, newest.manifest, run.config, resuming=True)
    return newest is not None and newest.step >= last_step(run.config)


def _train(run: PlannedRun, launcher: str) -> None:
    try:
        words = shlex.split(launcher) or [sys.executable]
        process = subprocess.Popen([*words, str(TRAIN), "--config", run.base, *run.overrides])
    except (OSError, ValueError) as error:  # the latter of a quotation that does not end
        raise RunError(f"--launcher {launcher!r}: {getattr(error, 'strerror', error)}") from None
    before = {number: signal.signal(number, lambda got, _: process.send_signal(got)) for number in _PASSED_ON}
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the run as well, which then ends
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise RunError(f"{run.name}: training ended with exit code {code}; the same command goes on from what is saved")
