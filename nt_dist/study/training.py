"""Trains the runs of a plan, one after the other, each by train.py in processes of its own."""

import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from nt_dist.checkpoint.weights import check_config
from nt_dist.errors import RunError
from nt_dist.study.plan import PlannedRun
from nt_dist.study.results import newest_whole

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)
_LOGGER = logging.getLogger(__name__)


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
    return newest is not None and newest.step >= run.config.train.steps


def _train(run: PlannedRun, launcher: str) -> None:
    command = [*(shlex.split(launcher) or [sys.executable]), str(TRAIN), "--config", run.base, *run.overrides]
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        raise RunError(f"--launcher {launcher!r}: {error.strerror}") from None
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
