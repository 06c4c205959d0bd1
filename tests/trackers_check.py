"""The real clients of Weights & Biases (offline) and MLflow (a folder): run where both are installed.

python tests/trackers_check.py FOLDER
"""

import os
import sys
from pathlib import Path

os.environ["WANDB_MODE"] = "offline"

from mlflow import MlflowClient

from nt_dist.training.trackers import Trackers

FIGURES = {"training/loss": 2.0, "loss_of_trail/1": 1.5, "validation_of_ensemble/mean_of_probabilities": 55.0}


def main() -> None:
    """Log, go on, and look at what is there."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for first in (0, 2):
        trackers = Trackers(["wandb", "mlflow"], folder, {"train.lr": 0.1, "run.dir": str(folder)}, first)
        assert set(trackers._open) == {"wandb", "mlflow"}
        for step in (first + 1, first + 2):
            trackers.log(step, {name: value - step for name, value in FIGURES.items()})
        trackers.close()
    client = MlflowClient((folder / "mlruns").absolute().as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "nt_dist"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss_of_trail/1")
    assert [(each.step, each.value) for each in history] == [(1, 0.5), (2, -0.5), (3, -1.5), (4, -2.5)]
    assert run.data.params["train.lr"] == "0.1" and run.info.status == "FINISHED"
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    ids = {part.name.rpartition("-")[2] for part in parts}
    assert len(parts) == 2 and len(ids) == 1, parts  # two starts of one run
    print("wandb:", *(part.name for part in parts), "mlflow:", run.info.run_id)


if __name__ == "__main__":
    main()
