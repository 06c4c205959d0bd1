"""A ResNet is the same model in every layout: trails and data dealt out, every ZeRO stage, SGD with momentum."""

from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch

from nt_dist.data.loader import Batch
from nt_dist.engine.averaging import average_weights, averaged
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.evaluation.evaluate import evaluate
from nt_dist.families import make_config
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.model.weights import choose_storages
from nt_dist.parallel.mesh import init_mesh
from nt_dist.sparsity import storages
from nt_dist.testing import run_distributed
from nt_dist.training.topology_updates import TopologyUpdater

STEPS, BATCH, MICRO, SIDE, CLASSES = 7, 24, 12, 8, 5
SEED = 2  # with some, two scores of an update are so near to each other that rounding ranks them


@dataclass(frozen=True)
class Layout:
    trail: int = 1
    data: int = 1
    stage: int = 0
    trunk: str = "auto"
    micro: int = MICRO
    groups: str = ""  # the storage of groups, where there are any

    def __str__(self):
        return f"trail {self.trail}, data {self.data}, ZeRO {self.stage}, {self.trunk} trunk, micro-batch {self.micro}"


def config_of(layout):
    model = {"family": "resnet", "block": "preactivation", "stem": "small", "stem_width": 8, "width": 8}
    model |= {"depths": [1, 2], "num_classes": CLASSES, "image_size": SIDE, "norm_batch": 2}
    train = {"steps": STEPS, "batch_size": BATCH, "micro_batch_size": layout.micro, "lr": 0.05, "warmup_steps": 2}
    train |= {
        "seed": SEED,
        "optimizer": "sgd",
        "nesterov": True,
        "objective": "mean",
        "weight_decay": 1e-3,
        "grad_clip": 1.0,
        "average_decay": 0.7,
        "average_from": 0.3,
    }
    sparsity = {"density": 0.4, "topology_shards": 2, "update_every": 2, "drop": "magnitude"}
    sparsity |= {"structure": "groups", "group_size": 3, "storage": layout.groups} if layout.groups else {}
    sections = {"model": model, "trails": {"count": 6, "layers": 2}, "sparsity": sparsity, "train": train}
    sections["parallel"] = {"trail": layout.trail, "trunk": layout.trunk}
    zero = {"stage": layout.stage} | ({"stage3_param_persistence_threshold": 30} if layout.stage == 3 else {})
    return make_config(sections, {"zero_optimization": zero}, layout.trail * layout.data)


def batches_of(number, rank, degree, micro, is_mixed=False):
    """Pictures with one target each, or with two targets and their shares."""
    generator = torch.Generator().manual_seed(number)
    pictures = torch.randint(256, (BATCH, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    targets, weights = torch.randint(CLASSES, (BATCH, 1), generator=generator), torch.ones(BATCH, 1)
    if is_mixed:
        targets = torch.randint(CLASSES, (BATCH, 2), generator=generator)
        share = torch.rand(BATCH, 1, generator=generator)
        weights = torch.cat([share, 1 - share], 1)
    mine = slice(rank * BATCH // degree, (rank + 1) * BATCH // degree)
    parts = zip(*(each[mine].split(micro) for each in (pictures, targets, weights)), strict=True)
    return [Batch(*part) for part in parts]


def train(rank, world_size, layout):
    """What a run did, in a form that knows no layout."""
    config = config_of(layout)
    mesh = init_mesh(config)
    model = build_mesh_model(config, mesh)
    engine = build_engine(config, model, mesh)
    state = optimizer_state(engine)
    state.create()
    updater, axis = TopologyUpdater(config, mesh, model, state, engine), mesh.data
    found = {"losses": [], "norms": [], "checksums": [updater.check("the start")]}
    for step in range(1, STEPS + 1):
        batches = batches_of(step, axis.rank, axis.degree, layout.micro, is_mixed=step % 2 == 0)
        result = train_step(engine, config, mesh, batches, step, updater.collects_at(step))
        assert result.applied
        average_weights(config, model, state, step)
        found["losses"].append(result.loss_per_trail)
        found["norms"].append(result.grad_norm)
        if updater.updates_at(step):
            assert updater.update(step)[0] > 0
            found["checksums"].append(updater.check(f"the update at step {step}"))
    with averaged(model, state):
        figures = evaluate(model, batches_of(1000, axis.rank, axis.degree, layout.micro), mesh, config)
    found["evaluation"] = [*figures["nll_trails"], figures["nll_ensemble_prob"], figures["nll_ensemble_logit"]]
    found["answers"] = [*figures["accuracy_trails"], figures["accuracy_ensemble_prob"]]
    tensors = {}
    for name, weight in weights_of(model).items():
        slots = [weight.to_slots(each).float() for each in state.read(weight).values()]
        for trail in weight.trails:
            for shard in weight.shards:
                tensors[name, trail, shard] = torch.stack([weight.fragment(each, trail, shard) for each in slots])
    for name, statistic in statistics_of(model).items():
        both = torch.stack([statistic.values, statistic.average], 1)
        tensors |= {(name, trail): each for trail, each in zip(statistic.trails, both, strict=True)}
    return found, tensors


@pytest.fixture(scope="module")
def alone():
    ((found, tensors),) = run_distributed(train, 1, Layout())
    assert len(found["checksums"]) == 4
    return found, tensors


LAYOUTS = [
    *(Layout(data=2, stage=stage) for stage in range(4)),
    Layout(data=2, stage=1, micro=4),
    Layout(trail=2),
    Layout(trail=2, trunk="replicated"),
    Layout(trail=3),
    Layout(trail=2, data=2, stage=1),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layout_trains_as_one_rank_does(layout, alone):
    expected, tensors = alone
    seen = set()
    for found, held in run_distributed(train, layout.trail * layout.data, layout):
        assert found["checksums"] == expected["checksums"]
        for key in ("norms", "evaluation", "answers"):
            torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(expected[key]), rtol=2e-4, atol=2e-5)
        losses = torch.tensor(found["losses"])
        of_trails = torch.tensor(expected["losses"])
        share = of_trails.shape[1] // losses.shape[1]
        candidates = of_trails.view(STEPS, share, -1).unbind(1)
        assert any(torch.allclose(losses, each, rtol=2e-4, atol=2e-5) for each in candidates)
        for key, tensor in held.items():
            torch.testing.assert_close(
                tensor, tensors[key], rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
        seen |= held.keys()
    assert seen == tensors.keys()


def _train_groups(rank, world_size, layout):
    with patch.object(storages, "_convolution_pays", lambda spec: spec.group > 0):
        assert ("grouped" in choose_storages(config_of(layout)).values()) == (layout.groups == "auto")
        return train(rank, world_size, layout)


def test_convolutions_of_groups_train_as_dense_ones():
    layout = Layout(data=2, stage=3, groups="auto")
    runs = [run_distributed(_train_groups, 2, each) for each in (layout, replace(layout, groups="masked"))]
    for (found, tensors), (expected, others) in zip(*runs, strict=True):
        assert found["checksums"] == expected["checksums"] and tensors.keys() == others.keys()
        torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(expected["losses"]))
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[key], rtol=2e-3, atol=2e-5)
