"""The folder of a run: one run at a time may write into it; its settings and its table."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from nt_dist import __version__
from nt_dist.checkpoint.manifest import CONFIG
from nt_dist.command_line import Telling
from nt_dist.config import Config
from nt_dist.config.load import RUN_LOCK
from nt_dist.errors import NTDistError, RunError
from nt_dist.evaluation.report import evaluation_table, samples_used
from nt_dist.files import lock, write_whole
from nt_dist.messages import LOGGER, BarHandler
from nt_dist.model.weights import count_parameters
from nt_dist.training.metrics_log import METRICS, last_evaluation
from nt_dist.training.reporter import TENSORBOARD

CONSOLE_LOG = "train.log"


def claim(folder: Path) -> TextIO:
    """Make ``run.dir`` where there is none, and keep other runs out of it until the returned file is closed.

    The main rank alone does so. RunError if the folder cannot be made or written, or another run is working in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUN_LOCK).open("a+")
        if lock(file):
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}\n")
            file.flush()
            return file
    except OSError as problem:
        raise RunError(f"run.dir = {str(folder)!r}: cannot be made or written: {problem.strerror}") from problem
    file.seek(0)
    owner = file.read().strip() or "unknown"
    file.close()
    raise RunError(f"run.dir = {str(folder)!r}: another run is working in it (process {owner})")


def lacks_evaluation(config: Config, done: int) -> bool:
    """Whether training has ended, but was asked to leave in its last evaluation."""
    if done < config.train.steps:
        return False
    record = last_evaluation(Path(config.run.dir) / METRICS)
    return record is None or record["step"] < done


@contextmanager
def console_log(folder: Path, world_size: int) -> Iterator[TextIO]:
    """Also keep in ``train.log`` what this process logs, and what ends it; gives the file, for more.

    The main rank alone does so. A disk that does not take it ends nothing.
    """
    path = folder / CONSOLE_LOG
    try:
        file = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        LOGGER.warning("%s: cannot be written: %s", path, problem.strerror)
        file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    with file:
        log = Telling(file)
        now = datetime.now().astimezone()
        log.write(f"== {now:%Y-%m-%d %H:%M:%S %z}, nt_dist {__version__}, {world_size} ranks ==\n")
        LOGGER.addHandler(handler := BarHandler(own=log))
        try:
            yield log
        except BaseException as error:
            said = f"error: {error}\n" if isinstance(error, NTDistError) else traceback.format_exc()
            log.write(said)
            raise
        finally:
            LOGGER.removeHandler(handler)


def write_config(folder: Path, config: Config) -> None:
    """Writes ``config.toml`` with every setting resolved, whole or not at all."""
    write_whole(folder / CONFIG, config.to_toml())


def print_table(config: Config, log: TextIO | None = None) -> None:
    """Prints the newest evaluation of the run in ``run.dir`` as a table, and how to look further; also into ``log``."""
    folder = Path(config.run.dir)
    record = last_evaluation(folder / METRICS)
    if record is None:
        LOGGER.info("%s has no evaluation yet", folder)
        return
    parameters = count_parameters(config)
    on = f", on {samples_used(config.family, *record['samples'])}" if "samples" in record else ""  # older ones lack it
    facts = {
        "weights": f"{parameters['stored']:,} stored of {parameters['dense']:,}",
        "evaluated": f"after step {record['step']} of {config.train.steps}{on}",
    }
    if TENSORBOARD in config.run.loggers:
        facts["curves"] = f"tensorboard --logdir {folder / TENSORBOARD}"
    table = evaluation_table(config.family, record["eval"], facts)
    print(table, flush=True)
    if log:
        log.write(f"{table}\n")
