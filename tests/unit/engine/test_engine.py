"""What a step is given: its learning rate, its parameter groups, its objective."""

import pytest
import torch

from nt_dist.engine.engine import StepResult, learning_rate
from nt_dist.engine.optimizers import group_key
from nt_dist.families import make_config
from nt_dist.model.weights import weight_specs
from tests.unit.model.tiny import tiny


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    config = make_config({"train": {"steps": 110, "warmup_steps": 10, "lr": 2.0, "min_lr_ratio": 0.1}})
    assert learning_rate(config, 1) == pytest.approx(0.2)
    assert learning_rate(config, 10) == pytest.approx(2.0)
    assert learning_rate(config, 60) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert learning_rate(config, 110) == learning_rate(config, 500) == pytest.approx(0.2)
    assert learning_rate(make_config({"train": {"warmup_steps": 0, "lr": 2.0}}), 1) == pytest.approx(2.0, rel=1e-4)


def test_a_schedule_of_steps_falls_after_each_milestone():
    train = {
        "lr": 2.0,
        "steps": 100,
        "warmup_steps": 4,
        "lr_schedule": "steps",
        "milestones": [0.25, 0.5],
        "lr_decay": 0.1,
    }
    config = tiny(train=train)
    rates = {1: 0.5, 4: 2.0, 25: 2.0, 26: 0.2, 50: 0.2, 51: 0.02, 100: 0.02}
    assert {step: learning_rate(config, step) for step in rates} == pytest.approx(rates)


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_vectors_decay_where_that_is_asked_for(decay_vectors):
    config = tiny(train={"weight_decay": 0.1, "decay_vectors": decay_vectors})
    constant = {name: group_key(config, spec)[0] for name, spec in weight_specs(config).items()}
    assert constant["norm"] != decay_vectors and not constant["output"]


def test_the_objective_is_the_sum_over_trails_or_their_mean():
    sums, tokens = torch.tensor([6.0, 9.0]), torch.tensor(3.0)
    made = [StepResult(sums, tokens, 1.0, True, None, 0.1, scale) for scale in (1.0, 0.5)]
    assert [(each.objective, each.loss) for each in made] == [(5.0, 2.5), (2.5, 2.5)]


@pytest.mark.parametrize(("of_trails", "wanted"), [("sum", 5.0 + 0.5 * 4.0), ("mean", 2.5 + 0.5 * 4.0)])
def test_the_ensembles_loss_is_added_to_the_sum_or_the_mean(of_trails, wanted):
    config = tiny(trails={"count": 2, "joint": 0.5}, train={"objective": of_trails})
    scale = {"sum": 1.0, "mean": 0.5}[of_trails]
    arguments = torch.tensor([4.0, 6.0]), torch.tensor(2.0), 1.0, True, None, 1e-3, scale
    result = StepResult(*arguments, joint_nll=torch.tensor(8.0), joint=config.joint_weight)
    assert result.joint_loss == 4.0 and result.objective == wanted
    assert StepResult(*arguments).joint_loss is None
