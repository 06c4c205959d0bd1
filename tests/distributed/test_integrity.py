"""One bit flipped on one rank is found and named, whatever it is a bit of."""

import pytest
import torch

from nt_dist.data.loader import Batch
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.errors import CorruptionError, TopologyError
from nt_dist.families import make_config
from nt_dist.model.trails import weights_of
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed
from nt_dist.training.integrity import Integrity, _sum_bits
from nt_dist.training.topology_updates import TopologyUpdater
from tests.distributed.tiny import SEQUENCE, TINY_MODEL, VOCABULARY

BATCH = 4
LOW, TOP = 0, -2  # the last bit of the fraction, the first of the exponent


class _Run:
    """One rank's run after two steps, in which bits can be flipped."""

    def __init__(self, world_size, precision="fp32", stage=0, optimizer="adamw", **layout):
        sections = {
            "model": TINY_MODEL,
            "trails": {"count": 2, "layers": 1},
            "sparsity": {"density": 0.4, "topology_shards": 2, "storage": "compact"},
            "train": {
                "recipe": "paper",
                "batch_size": BATCH,
                "micro_batch_size": 1,
                "warmup_steps": 0,
                "precision": precision,
            }
            | {"optimizer": optimizer},
            "parallel": layout,
        }
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 100} if stage == 3 else {})
        config = make_config(sections, {"zero_optimization": zero}, world_size)
        self.mesh = init_mesh(config)
        model = build_mesh_model(config, self.mesh)
        engine = build_engine(config, model, self.mesh)
        self.door = optimizer_state(engine)
        self.door.create()
        self.weights = weights_of(model)
        self.topology = TopologyUpdater(config, self.mesh, model, self.door, engine)
        self.integrity = Integrity(self.mesh, model, self.door)
        self.integrity.check("the start")
        rows = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=torch.Generator().manual_seed(1))
        share = BATCH // self.mesh.data.degree
        rows = rows[self.mesh.data.rank * share :][:share]
        batches = [Batch(row[:, :-1], row[:, 1:], torch.ones(1, SEQUENCE)) for row in rows.split(1)]
        for step in (1, 2):
            train_step(engine, config, self.mesh, batches, step)
        self.integrity.check("step 2")

    def moment(self, name, part):
        """A view of what this rank keeps of a weight's master (0) or moment (1, 2)."""
        return list(self.door.partition(self.weights[name]).state.values())[part]

    def copy(self, name):
        """A view of a weight's compute copy."""
        return self.door.compute_copy(self.weights[name]).values

    def report(self, bad_rank, view, bit):
        """What is found when one rank's first entry has a bit flipped; it is flipped back."""
        integers = {2: torch.int16, 4: torch.int32}
        for again in (False, True):
            if self.mesh.rank == bad_rank:
                bits = view().view(integers[view().element_size()])
                bits[:1] ^= 1 << (bit % (8 * bits.element_size())) if bit >= 0 else 1 << (8 * bits.element_size() + bit)
            if not again:
                with pytest.raises(CorruptionError) as caught:
                    self.integrity.check("step 2")
        self.integrity.check("step 2")
        return str(caught.value).splitlines()[1:]


def _flip_in_replicas(rank, world_size):
    """fp32 at ZeRO 0: everything is on every data rank."""
    run = _Run(world_size)
    lines = [
        run.report(1, lambda: run.copy("blocks.1.mlp.up"), LOW),
        run.report(0, lambda: run.moment("blocks.0.attention.norm", 1), LOW),
        run.report(2, lambda: run.moment("output", 2), LOW),
        run.report(2, lambda: run.moment("output", 2), TOP),
    ]
    index = run.weights["blocks.0.mlp.gate"].index
    if rank == 1:
        index.view(-1)[0] ^= 1
    with pytest.raises(
        TopologyError, match=r"blocks\.0\.mlp\.gate: the topologies of its replicas differ after step 2"
    ):
        run.topology.check("step 2")
    return lines


def test_a_bit_in_one_copy_is_found_and_named():
    answers = run_distributed(_flip_in_replicas, 4)
    assert all(lines == answers[0] for lines in answers)
    copy, mean, square, implausible = answers[0]
    assert copy == ["blocks.1.mlp.up: its compute copy on rank 1 is another than on rank 0, 2, 3"]
    assert mean == ["blocks.0.attention.norm: its exp_avg on rank 0 is another than on rank 1, 2, 3"]
    assert square == ["output: its exp_avg_sq on rank 2 is another than on rank 0, 1, 3"]
    assert implausible[0].startswith("rank 2: output: exp_avg_sq is no plausible number (entry 0")


def _flip_in_partitions(rank, world_size, precision, stage):
    """Masters and moments have no second copy; compute copies may have."""
    run = _Run(world_size, precision, stage)
    name = "blocks.1.mlp.up"
    return [
        run.report(1, lambda: run.copy(name), LOW),
        run.report(1, lambda: run.moment(name, 0), TOP),
        run.report(1, lambda: run.moment(name, 1), TOP),
        run.report(1, lambda: run.moment(name, 2), TOP),
    ]


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 2), ("bf16", 1), ("fp32", 3)])
def test_a_bit_in_a_partition_is_found_where_it_makes_no_sense(precision, stage):
    for copy, master, mean, square in run_distributed(_flip_in_partitions, 2, precision, stage):
        if stage < 3:
            assert (
                "blocks.1.mlp.up: the copies of its compute copy on ranks 0, 1 differ, and none is the usual one"
                in copy
            )
        if stage == 3 or precision == "fp32":
            assert any(
                line.startswith("rank 1: blocks.1.mlp.up: its compute copy is not its master")
                for line in [*copy, *master]
            )
        assert any(line.startswith("rank 1: blocks.1.mlp.up: a weight is not within 1e+06") for line in master)
        assert [line[: line.index(" (")] for line in mean] == [
            "rank 1: blocks.1.mlp.up: exp_avg is too large for its exp_avg_sq"
        ]
        assert "rank 1: blocks.1.mlp.up: exp_avg_sq is no plausible number" in square[0]


def _flip_in_momentum(rank, world_size, precision, stage):
    run = _Run(world_size, precision, stage, "sgd")
    return [run.report(1, lambda: run.moment("blocks.1.mlp.up", 1), bit) for bit in (LOW, TOP)]


def test_a_bit_in_the_momentum_of_sgd():
    for copy, implausible in run_distributed(_flip_in_momentum, 2, "fp32", 0):
        assert copy == [
            "blocks.1.mlp.up: the copies of its momentum_buffer on ranks 0, 1 differ, and none is the usual one"
        ]
        assert implausible[0].startswith("rank 1: blocks.1.mlp.up: momentum_buffer is no plausible number (entry 0")


def _flip_in_the_model(rank, world_size):
    """Trunk on two trail ranks, norms on two tensor ranks, masters and moments partitioned over data."""
    tensor = _Run(world_size, "fp32", 1, tensor=2)
    lines = tensor.report(3, lambda: tensor.moment("norm", 1), LOW)
    trail = _Run(world_size, "fp32", 1, trail=2)
    return lines, trail.report(1, lambda: trail.moment("blocks.0.mlp.up", 2), LOW)


def test_a_bit_in_a_partitioned_moment_of_a_weight_that_the_model_holds_twice():
    for tensor, trail in run_distributed(_flip_in_the_model, 4):
        assert tensor == ["norm: the copies of its exp_avg on ranks 0, 1, 2, 3 differ, and none is the usual one"]
        assert trail == [
            "blocks.0.mlp.up: the copies of its exp_avg_sq on ranks 0, 1, 2, 3 differ, and none is the usual one"
        ]


def test_a_sum_of_pieces_is_that_of_the_whole_and_any_bit_changes_it():
    whole = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    parts = sum(int(_sum_bits(whole[first:end], first)) for first, end in ((0, 300), (300, 301), (301, 1000)))
    right = int(_sum_bits(whole, 0))
    assert parts % (1 << 48) == right
    assert int(_sum_bits(whole.roll(1), 0)) != right
    for bit in range(32):
        changed = whole.clone()
        changed.view(torch.int32)[617] ^= 1 << bit if bit < 31 else -(1 << 31)
        assert int(_sum_bits(changed, 0)) != right, bit
