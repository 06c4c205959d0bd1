"""What a step is given: its learning rate, its parameter groups, its objective."""

import pytest
import torch

from nt_dist.engine.engine import StepResult, learning_rate
from nt_dist.engine.optimizers import group_key, make_optimizer, norm_of
from nt_dist.errors import ConfigError
from nt_dist.families import make_config
from nt_dist.model.trails import build_model, weights_of
from nt_dist.model.weights import weight_specs
from tests.unit.model.tiny import tiny


def test_learning_rate_stays_and_falls_linearly_at_the_end():
    train = {"warmup_steps": 10, "steps": 100, "lr": 2.0, "lr_schedule": "wsd", "decay_share": 0.2, "min_lr_ratio": 0.1}
    config = make_config({"train": train})
    rates = {5: 1.0, 10: 2.0, 80: 2.0, 90: 2.0 * (0.1 + 0.9 / 2), 100: 0.2, 200: 0.2}
    assert {step: learning_rate(config, step) for step in rates} == pytest.approx(rates)


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


def test_groups_step_at_their_own_rates_as_adamw_is_written():
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, twice, with each group's own rates."""
    rates = {"lr_embedding": 2.0, "lr_output": 0.5, "lr_trunk": 1.5, "weight_decay": 0.1}
    rates |= {"weight_decay_embedding": 0.0, "weight_decay_output": 3.0, "weight_decay_trunk": 0.5}
    rates |= {"betas": [0.7, 0.9], "betas_embedding": [0.5, 0.6], "betas_output": [0.0, 0.8], "adam_eps": 1e-3}
    expected = {  # by layer: factor on the learning rate, decay, betas
        "embedding": (2.0, 0.0, (0.5, 0.6)),
        "blocks.0": (1.5, 0.05, (0.7, 0.9)),
        "blocks.1": (1.0, 0.1, (0.7, 0.9)),
        "output": (0.5, 0.3, (0.0, 0.8)),
    }
    sections = {"hidden_size": 8, "ffn_size": 8, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 8}
    config = make_config({"model": sections, "trails": {"layers": 1}, "sparsity": {"density": 1.0}, "train": rates})
    model = build_model(config)
    optimizer = make_optimizer(config, model, None)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_factor"]
    gradients = [torch.randn(400, generator=torch.Generator().manual_seed(step)) for step in (1, 2)]
    weights, wanted = weights_of(model), {}
    for name, weight in weights.items():
        factor, decay, (first, second) = expected[weight.spec.layer]
        decay = 0.0 if weight.spec.is_vector else decay
        value, m, v = weight.values.detach().clone(), 0.0, 0.0
        for step, gradient in enumerate(gradients, 1):
            g = gradient[: value.numel()].view_as(value)
            m, v = first * m + (1 - first) * g, second * v + (1 - second) * g**2
            move = m / (1 - first**step) / ((v / (1 - second**step)).sqrt() + 1e-3)
            value = value * (1 - 0.1 * factor * decay) - 0.1 * factor * move
        wanted[name] = value
    for gradient in gradients:
        for weight in weights.values():
            weight.values.grad = gradient[: weight.values.numel()].view_as(weight.values)
        optimizer.step()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.values.detach(), wanted[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.9, 0.9], [0.9, 1.0]])
def test_betas_of_a_group_are_two_or_none(betas):
    with pytest.raises(ConfigError, match=r"train\.betas_output = .* must be two numbers in \[0, 1\), or none"):
        make_config({"train": {"betas_output": betas}})


def test_the_objective_is_the_sum_over_trails_or_their_mean():
    sums, tokens = torch.tensor([6.0, 9.0]), torch.tensor(3.0)
    made = [StepResult(sums, tokens, 1.0, True, None, 0.1, scale) for scale in (1.0, 0.5)]
    assert [(each.objective, each.loss) for each in made] == [(5.0, 2.5), (2.5, 2.5)]


@pytest.mark.parametrize(("of_trails", "wanted"), [("sum", 5.0 + 0.5 * 4.0), ("mean", 2.5 + 0.5 * 4.0)])
def test_the_ensembles_loss_is_added_to_the_sum_or_the_mean(of_trails, wanted):
    config = tiny(trails={"count": 2, "joint": 0.5}, train={"objective": of_trails})
    scale = {"sum": 1.0, "mean": 0.5}[of_trails]
    arguments = torch.tensor([4.0, 6.0]), torch.tensor(2.0), 1.0, True, None, 1e-3, scale
    result = StepResult(*arguments, joint_nll=torch.tensor(8.0), joint=config.joint_weight(1))
    assert result.joint_loss == 4.0 and result.objective == wanted
    assert StepResult(*arguments).joint_loss is None


def test_the_weight_of_the_ensembles_loss_keeps_its_course():
    assert tiny().joint_weight(1) is None
    assert {tiny(trails={"joint": 0.5}, train={"steps": 200}).joint_weight(step) for step in (1, 200)} == {0.5}
    for start, end, middle in ((0.2, 1.0, 0.6), (1.0, 0.0, 0.5)):
        trails = {"count": 2, "joint": end, "joint_schedule": "linear", "joint_start": start}
        config = tiny(trails=trails, train={"steps": 200})
        assert config.trails.trained_mean == "logits"
        weights = {step: config.joint_weight(step) for step in (1, 100, 200)}
        assert weights == pytest.approx({1: start + (end - start) / 200, 100: middle, 200: end})
        of_mean = tiny(trails=trails, train={"steps": 200, "objective": "mean"})
        assert of_mean.joint_weight(100) == pytest.approx(2 * middle)
    assert tiny(trails={"joint_start": 1.0}).joint_weight(1) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_long_gradients_loses_nothing(dtype):
    """Summed in fp32 one by one it would be a thousandth too low, and feed clipping and the guard."""
    gradients = [torch.full((1 << 23,), 0.001, dtype=dtype), torch.ones(2, 3, dtype=dtype)]
    expected = torch.cat([each.double().flatten() for each in gradients]).norm()
    torch.testing.assert_close(norm_of(gradients), expected, rtol=1e-5, atol=0)
