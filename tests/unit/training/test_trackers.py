"""Weights & Biases and MLflow are told what TensorBoard is; stand-ins for their clients here.

tests/trackers_check.py does it with the real clients, where they are installed.
"""

import sys
from types import SimpleNamespace

import pytest

from nt_dist.errors import RunError
from nt_dist.families import DEFAULT
from nt_dist.training.reporter import Reporter
from nt_dist.training.trackers import check_loggers

LINE = {"step": 1, "loss": 2.0, "lr": 0.1, "topology_checksum": "ab", "loss_per_trail": [1.5, 2.5]}
FIGURES = {"ppl_trails": [60.0, 62.0], "ppl_ensemble_prob": 55.0, "ppl_ensemble_logit": 54.0, "disagreement": 0.25}


class Wandb:
    """As much of the client as is used; ``broken`` makes it refuse what is logged."""

    def __init__(self):
        self.runs, self.logged, self.broken = [], [], False

    def init(self, **settings):
        self.runs.append(settings)
        return self

    def log(self, figures, step):
        if self.broken:
            raise OSError("no network")
        self.logged.append((step, figures))

    def finish(self):
        self.logged.append("finished")


@pytest.fixture
def wandb(monkeypatch):
    client = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=client.init))
    return client


def _report(folder, first_step, *lines, loggers=("wandb",)):
    reporter = Reporter(folder, DEFAULT, first_step, 10, {}, [], loggers, {"train.lr": 0.1})
    for line in lines:
        reporter.logged(line)
    return reporter


def test_the_figures_are_tensorboards_and_a_run_that_goes_on_is_one(tmp_path, wandb):
    reporter = _report(tmp_path, 0, LINE)
    reporter.evaluated({"step": 1, "eval": FIGURES | {"tokens": 64}}, None)
    reporter.close()
    trails = {"loss_of_trail/1": 1.5, "loss_of_trail/2": 2.5}
    assert wandb.logged[0] == (1, {"training/loss": 2.0, "training/lr": 0.1, **trails})
    step, evaluated = wandb.logged[1]
    assert step == 1 and evaluated["validation_of_trail/2"] == 62.0 and evaluated["validation/disagreement"] == 0.25
    assert wandb.logged[2] == "finished" and not (tmp_path / "tensorboard").exists()
    _report(tmp_path, 1).close()
    first, second = wandb.runs
    assert first["id"] == second["id"] and first["config"] == {"train.lr": 0.1} and first["name"] == tmp_path.name
    _report(tmp_path, 0).close()  # begins anew
    assert wandb.runs[2]["id"] != first["id"]


def test_what_a_service_refuses_is_one_warning(tmp_path, wandb, caplog):
    wandb.broken = True
    reporter = _report(tmp_path, 0, LINE, {**LINE, "step": 2}, loggers=("tensorboard", "wandb"))
    reporter.close()
    assert caplog.text.count("wandb is left out from here on: OSError: no network") == 1
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"run.loggers names 'mlflow', .*pip install \"nt_dist\[mlflow\]\""):
        check_loggers(["tensorboard", "mlflow"])
