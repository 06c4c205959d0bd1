"""The folder of a run: one run at a time may write into it; its settings and its table."""

import os
from pathlib import Path
from typing import TextIO

from nt_dist.checkpoint.manifest import CONFIG
from nt_dist.config import Config
from nt_dist.config.load import RUN_LOCK
from nt_dist.errors import RunError
from nt_dist.evaluation.report import evaluation_table
from nt_dist.files import lock, write_whole
from nt_dist.messages import LOGGER
from nt_dist.model.weights import count_parameters
from nt_dist.training.metrics_log import METRICS, last_evaluation
from nt_dist.training.reporter import TENSORBOARD


def claim(folder: Path) -> TextIO:
    """Make ``run.dir`` where there is none, and keep other runs out of it until the returned file is closed.

    The main rank alone does so. RunError if the folder cannot be made or written, or another run is working in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUN_LOCK).open("a+")
    except OSError as problem:
        raise RunError(f"run.dir = {str(folder)!r}: cannot be made or written: {problem.strerror}") from problem
    if not lock(file):
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise RunError(f"run.dir = {str(folder)!r}: another run is working in it (process {owner})")
    file.truncate(0)
    file.write(f"{os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def lacks_evaluation(config: Config, done: int) -> bool:
    """Whether training has ended, but was asked to leave in its last evaluation."""
    if done < config.train.steps:
        return False
    record = last_evaluation(Path(config.run.dir) / METRICS)
    return record is None or record["step"] < done


def write_config(folder: Path, config: Config) -> None:
    """Writes ``config.toml`` with every setting resolved, whole or not at all."""
    write_whole(folder / CONFIG, config.to_toml())


def print_table(config: Config) -> None:
    """Prints the newest evaluation of the run in ``run.dir`` as a table, and how to look further."""
    folder = Path(config.run.dir)
    record = last_evaluation(folder / METRICS)
    if record is None:
        LOGGER.info("%s has no evaluation yet", folder)
        return
    parameters = count_parameters(config)
    facts = {
        "weights": f"{parameters['stored']:,} stored of {parameters['dense']:,}",
        "evaluated": f"after step {record['step']} of {config.train.steps}",
        "curves": f"tensorboard --logdir {folder / TENSORBOARD}",
    }
    print(evaluation_table(config.family, record["eval"], facts), flush=True)
