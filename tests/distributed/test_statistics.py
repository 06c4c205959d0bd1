"""Statistics of a model under a real engine: exact in bf16, saved in one layout, loaded in another, compared."""

import pytest
import torch

from nt_dist.checkpoint.checkpoint import load, save
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.engine.engine import build_engine
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.errors import CorruptionError
from nt_dist.families import make_config
from nt_dist.model.trails import statistics_of
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed
from nt_dist.training.integrity import Integrity
from tests.distributed.tiny import TINY_MODEL
from tests.unit.model.with_statistics import contents, fill, with_statistics


class _Run:
    """One rank's model and engine."""

    def __init__(self, world_size, precision, stage, **layout):
        sections = {
            "model": TINY_MODEL,
            "trails": {"count": 2, "layers": 1},
            "sparsity": {"density": 0.4, "topology_shards": 2},
            "train": {"batch_size": 12, "micro_batch_size": 2, "precision": precision},
            "parallel": layout,
        }
        config = make_config(sections, {"zero_optimization": {"stage": stage}}, world_size)
        self.config = with_statistics(config)
        self.mesh = init_mesh(self.config)
        self.model = build_mesh_model(self.config, self.mesh)
        self.engine = build_engine(self.config, self.model, self.mesh)
        self.state = optimizer_state(self.engine)
        self.state.create()
        self.statistics = statistics_of(self.model)
        self.integrity = Integrity(self.mesh, self.model, self.state)


def _save(rank, world_size, folder, precision, stage, layout):
    run = _Run(world_size, precision, stage, **layout)
    for statistic in run.statistics.values():
        assert statistic.values.dtype == torch.float32
        fill(statistic)
    run.integrity.check("step 1")
    progress = TrainingState(1, 4, 0, "")
    return save(folder, run.config, run.mesh, run.model, run.state, progress), contents(run.statistics)


def _load(rank, world_size, path, precision, stage, layout):
    run = _Run(world_size, precision, stage, **layout)
    load(path, run.config, run.mesh, run.model, run.state)
    run.integrity.check("loading")
    return contents(run.statistics)


DATA, TRAIL, PIPE = {}, {"trail": 2}, {"pipe": 2}


@pytest.mark.parametrize(
    ("saved_in", "loaded_in"),
    [
        (("fp32", 0, DATA), ("bf16", 1, TRAIL)),
        (("bf16", 2, TRAIL), ("bf16", 3, DATA)),
        (("bf16", 1, DATA), ("fp32", 1, PIPE)),
    ],
    ids=["data to trail", "trail to data", "data to pipe"],
)
def test_what_one_layout_saves_another_loads(tmp_path, saved_in, loaded_in):
    saved = run_distributed(_save, 2, tmp_path, *saved_in)
    expected = {key: tensor for _, found in saved for key, tensor in found.items()}
    loaded = run_distributed(_load, 2, saved[0][0], *loaded_in)
    assert set().union(*loaded) == expected.keys() and len(expected) == 2 + 4
    for found in loaded:
        for key, tensor in found.items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[key]), key


def _differ(rank, world_size, layout, name):
    run = _Run(world_size, "bf16", 1, **layout)
    run.integrity.check("the start")
    if rank == 1:
        run.statistics[name].values.flatten()[-1] += 1e-6
    with pytest.raises(CorruptionError) as caught:
        run.integrity.check("step 1")
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize(("layout", "name"), [(DATA, "mean"), (TRAIL, "spread")], ids=["data", "trail"])
def test_a_rank_whose_copy_differs_is_named(layout, name):
    for lines in run_distributed(_differ, 3 if layout is DATA else 2, layout, name):
        if layout is DATA:
            assert lines == [f"{name}: its value on rank 1 is another than on rank 0, 2"]
        else:
            assert lines == [f"{name}: the copies of its value on ranks 0, 1 differ, and none is the usual one"]
