"""A checkpoint of a real engine on two ranks goes on in any other stage, storage, precision and number of ranks."""

import errno
import os
import shutil

import pytest
import torch

from nt_dist.errors import CheckpointError
from nt_dist.families import make_config
from nt_dist.testing import run_distributed

SECTIONS = {
    "model": {"hidden_size": 16, "ffn_size": 32, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 45},
    "trails": {"count": 2, "layers": 1},
    "sparsity": {"density": 0.4, "topology_shards": 4, "update_every": 2},
    "train": {
        "recipe": "paper",
        "steps": 20,
        "batch_size": 4,
        "micro_batch_size": 2,
        "lr": 1e-2,
        "warmup_steps": 2,
        "weight_decay": 0.1,
    }
    | {"average_decay": 0.7, "average_from": 0.05},
}
SAVED, LAST = 3, 6  # a topology update before the checkpoint, two after it


class Run:
    """An engine and all that goes with it, fed with the same global batches in every layout."""

    def __init__(self, world_size, storage, precision, stage, run):
        from nt_dist.engine.engine import build_engine
        from nt_dist.engine.optimizer_state import optimizer_state
        from nt_dist.model.trails import build_model, weights_of
        from nt_dist.parallel.mesh import init_mesh
        from nt_dist.training.topology_updates import TopologyUpdater

        sections = {name: dict(values) for name, values in SECTIONS.items()} | {"run": run}
        sections["sparsity"]["storage"] = storage
        sections["train"]["precision"] = precision
        self.config = make_config(sections, {"zero_optimization": {"stage": stage}}, world_size)
        self.mesh = init_mesh(self.config)
        self.model = build_model(self.config)
        self.weights = weights_of(self.model)
        self.engine = build_engine(self.config, self.model, self.mesh)
        self.state = optimizer_state(self.engine)
        self.state.create()
        self.updater = TopologyUpdater(self.config, self.mesh, self.model, self.state, self.engine)
        self.step = 0

    def train(self, last):
        """Train up to step ``last``; return the losses."""
        from nt_dist.data.loader import Batch
        from nt_dist.engine.averaging import average_weights
        from nt_dist.engine.engine import train_step

        losses = []
        for step in range(self.step + 1, last + 1):
            tokens = torch.randint(45, (4, 9), generator=torch.Generator().manual_seed(step))
            mine = tokens.chunk(self.mesh.data.degree)[self.mesh.data.rank].split(2)
            batches = [Batch(each[:, :-1].contiguous(), each[:, 1:].contiguous(), torch.ones(2, 8)) for each in mine]
            collect = self.updater.collects_at(step)
            losses.append(train_step(self.engine, self.config, self.mesh, batches, step, collect).loss)
            average_weights(self.config, self.model, self.state, step)
            if self.updater.updates_at(step):
                self.updater.update(step)
        self.step = last
        return losses

    def save(self, folder):
        from nt_dist.checkpoint.checkpoint import save
        from nt_dist.checkpoint.manifest import TrainingState

        progress = TrainingState(self.step, 4 * self.step, self.state.step, "abc", {"skipped": [2]})
        return save(folder, self.config, self.mesh, self.model, self.state, progress)

    def load(self, path):
        from nt_dist.checkpoint.checkpoint import load

        progress = load(path, self.config, self.mesh, self.model, self.state)
        self.step = progress.step
        return progress

    def content(self):
        """Positions, masters and moments of every (weight, trail, shard), in no particular layout."""
        found = {}
        for name, weight in self.weights.items():
            slots = [weight.to_slots(each) for each in self.state.read(weight).values()]
            for trail in weight.trails:
                for shard in weight.shards:
                    state = [weight.fragment(each, trail, shard) for each in slots]
                    found[name, trail, shard] = torch.stack([weight.positions(trail, shard).float(), *state])
        return found


def _train_and_save(rank, world_size, folder):
    run = Run(world_size, "compact", "fp32", 1, {"dir": "unused"})
    run.train(SAVED)
    path = run.save(folder)
    return path, run.content(), run.state.step, run.train(LAST), run.content()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of two ranks at ZeRO 1, what it must hold, and how the run went on without a break."""
    return run_distributed(_train_and_save, 2, tmp_path_factory.mktemp("saved"))[0]


def _load_and_train(rank, world_size, path, storage, precision, stage):
    run = Run(world_size, storage, precision, stage, {"dir": "unused"})
    progress = run.load(path)
    loaded = run.content()
    copies = {name: weight.values.detach().float().clone() for name, weight in run.weights.items()} if stage < 3 else {}
    masters = {name: run.state.read(weight)["value"] for name, weight in run.weights.items()}
    return (
        progress,
        run.state.step,
        run.updater.check("loading"),
        loaded,
        copies,
        masters,
        run.train(LAST),
        run.content(),
    )


@pytest.mark.parametrize(
    ("ranks", "storage", "precision", "stage"),
    [
        (2, "compact", "fp32", 1),
        (2, "masked", "fp32", 3),
        (1, "masked", "fp32", 0),
        (2, "compact", "bf16", 2),
        (1, "compact", "bf16", 1),
    ],
)
def test_it_goes_on_in_any_other_layout(saved, ranks, storage, precision, stage):
    path, expected, adam_step, losses, last = saved
    for found in run_distributed(_load_and_train, ranks, path, storage, precision, stage):
        progress, step, checksum, loaded, copies, masters, went_on, content = found
        assert (progress.step, progress.consumed_samples, progress.adam_step) == (SAVED, 4 * SAVED, adam_step)
        assert step == adam_step == SAVED and progress.extra == {"skipped": [2]} and len(checksum) == 16
        assert loaded.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(loaded[key], tensor), key
        for name, copy in copies.items():
            rounded = masters[name].bfloat16().float() if precision == "bf16" else masters[name]
            assert torch.equal(copy, rounded), name
        if (ranks, storage, precision, stage) == (2, "compact", "fp32", 1):  # where it came from: to the last bit
            assert went_on == losses and all(torch.equal(content[key], tensor) for key, tensor in last.items())
        else:
            assert went_on == pytest.approx(losses, rel=1e-5 if precision == "fp32" else 2e-2)


def _load(rank, world_size, path):
    run = Run(world_size, "compact", "fp32", 1, {"dir": "unused"})
    with pytest.raises(CheckpointError) as caught:
        run.load(path)
    return str(caught.value)


def test_damage_is_refused_on_all_ranks(saved, tmp_path):
    path = tmp_path / saved[0].name
    shutil.copytree(saved[0], path)
    file = path / "state-00001.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    file.write_bytes(damaged)
    messages = run_distributed(_load, 2, path)
    assert messages[0] == messages[1] and str(file) in messages[0] and "SHA-256" in messages[0]


def _save_with_a_full_disk(rank, world_size, folder):
    run = Run(world_size, "masked", "fp32", 2, {"dir": "unused", "keep": 2})
    before = run.save(folder)
    run.train(1)
    fsync = os.fsync

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    os.fsync = full if rank == 1 else fsync
    try:
        with pytest.raises(CheckpointError) as caught:
            run.save(folder)
    finally:
        os.fsync = fsync
    names = [sorted(os.listdir(folder))]
    run.mesh.barrier()
    for step in (2, 3):
        run.train(step)
        run.save(folder)
    run.mesh.barrier()
    return before.name, str(caught.value), names[0], sorted(os.listdir(folder))


def test_a_rank_with_a_full_disk_fails_the_save_on_all_and_the_run_goes_on(tmp_path):
    results = run_distributed(_save_with_a_full_disk, 2, tmp_path)
    for before, message, _, after in results:
        assert before == "step-00000000" and "No space left on device" in message and "rank 1" in message
        assert after == ["latest", "step-00000002", "step-00000003"]
    assert results[0][2] == ["latest", "step-00000000"]
