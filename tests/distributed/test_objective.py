"""What a step minimises, over ranks: means over the real tokens of its global batch, held against plain torch."""

import pytest
import torch
from torch import nn

from nt_dist.data.loader import Batch
from nt_dist.engine.engine import train_step
from nt_dist.families import make_config
from nt_dist.model.place import Place
from nt_dist.model.trails import build_model
from nt_dist.testing import run_distributed
from tests.distributed.test_training import BATCH, SEQUENCE, _batches, _config, _start


def _first_step_by_hand(rank, world_size):
    config = _config(world_size)
    mesh, _, engine, _, _ = _start(config)
    batch = Batch(*(torch.cat(parts) for parts in zip(*_batches(1), strict=True)))
    with torch.no_grad():
        sums = Place().trail_losses(build_model(config)(batch.inputs), batch.targets, batch.weights)
    result = train_step(engine, config, mesh, _batches(1, rank, world_size), 1)
    assert float(result.tokens) == float(batch.weights.sum()) < BATCH * SEQUENCE
    means = (sums / batch.weights.sum()).tolist()
    assert result.loss_per_trail == pytest.approx(means, rel=1e-5)
    assert result.loss == pytest.approx(sum(means) / len(means), rel=1e-5)
    assert result.objective == pytest.approx(sum(means), rel=1e-5)


def test_losses_are_means_over_the_real_tokens_of_the_global_step():
    run_distributed(_first_step_by_hand, 2)


def _joint_step_by_hand(rank, world_size, stage, mean, of_trails):
    sections = _config(world_size, stage).to_dict()
    last = 0.7 if mean == "logits" else 0.0
    sections["trails"] |= {"joint": last, "joint_mean": mean, "joint_schedule": "linear", "joint_start": 2.0}
    sections["train"] |= {"objective": of_trails}
    config = make_config(sections, {"zero_optimization": {"stage": stage}}, world_size)
    batch = Batch(*(torch.cat(parts) for parts in zip(*_batches(1), strict=True)))
    plain = build_model(config)
    logits = plain(batch.inputs)
    own = logits.log_softmax(-1)
    joint = logits.mean(0).log_softmax(-1) if mean == "logits" else logits.softmax(-1).mean(0).log()
    real, targets = batch.weights.flatten(), batch.targets.flatten()
    losses = [nn.functional.nll_loss(each.flatten(0, 1), targets, reduction="none") for each in (*own, joint)]
    means = [(each * real).sum() / real.sum() for each in losses]
    trails = torch.stack(means[:-1])
    weight = 2.0 + (last - 2.0) / config.train.steps  # of the first step
    minimised = (trails.sum() if of_trails == "sum" else trails.mean()) + weight * means[-1]
    minimised.backward()
    mesh, _, engine, _, _ = _start(config)
    result = train_step(engine, config, mesh, _batches(1, rank, world_size), 1)
    assert result.loss_per_trail == pytest.approx(trails.tolist(), rel=1e-5)
    assert result.joint_loss == pytest.approx(float(means[-1]), rel=1e-5)
    assert result.objective == pytest.approx(float(minimised), rel=1e-5)
    norm = torch.stack([each.grad.norm() for each in plain.parameters()]).norm()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "mean", "of_trails"), [(0, "logits", "sum"), (2, "probabilities", "mean"), (3, "logits", "mean")]
)
def test_the_ensembles_own_loss_is_that_of_plain_torch(stage, mean, of_trails):
    run_distributed(_joint_step_by_hand, 2, stage, mean, of_trails)
