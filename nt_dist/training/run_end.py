"""The end of a run: whether it has been evaluated, and the table that it leaves on the terminal."""

from pathlib import Path

from nt_dist.config import Config
from nt_dist.evaluation.report import evaluation_table
from nt_dist.messages import LOGGER
from nt_dist.model.weights import count_parameters
from nt_dist.training.metrics_log import METRICS, last_evaluation
from nt_dist.training.reporter import TENSORBOARD


def lacks_evaluation(config: Config, done: int) -> bool:
    """Whether training has ended, but was asked to leave in its last evaluation."""
    if done < config.train.steps:
        return False
    record = last_evaluation(Path(config.run.dir) / METRICS)
    return record is None or record["step"] < done


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
