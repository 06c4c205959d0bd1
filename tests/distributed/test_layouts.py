"""Every layout trains the same model as one rank: losses, norms, weights, moments, topologies, evaluation."""

from itertools import islice

import pytest
import torch

from nt_dist.engine.engine import train_step
from nt_dist.errors import TopologyError
from nt_dist.testing import run_distributed
from tests.distributed.layout_case import STATE, STEPS, Layout, Record, Run, batches_of, rows_from, train_whole

SAVED = 3  # after one topology update, before two more
LAYOUTS = [
    Layout(data=2, stage=1),
    Layout(data=2, stage=2),
    Layout(data=2, stage=3),
    Layout(tensor=2),
    Layout(trail=2, trunk="split"),
    Layout(trail=2, trunk="split", stage=1),
    Layout(trail=2, trunk="replicated"),
    Layout(trail=3, trunk="split"),
    Layout(trail=3, trunk="replicated", storage="masked"),
    Layout(tensor=2, data=2, stage=1),
    Layout(trail=2, tensor=2, trunk="split"),
    Layout(trail=2, tensor=2, trunk="replicated", stage=2),
    Layout(trail=2, data=2, trunk="split", stage=2),
    Layout(trail=2, data=2, trunk="split", stage=3, ragged=True),
    Layout(trail=2, data=2, trunk="replicated", stage=3),
    Layout(tensor=2, data=2, stage=1, ragged=True),
    Layout(tensor=2, joint="logits"),
    Layout(trail=3, trunk="replicated", joint="logits"),
    Layout(trail=2, data=2, trunk="split", stage=2, ragged=True, joint="logits"),
    Layout(tensor=2, trail=2, trunk="replicated", joint="probabilities"),
    Layout(trail=3, trunk="replicated", joint="probabilities"),
    Layout(data=2, stage=2, joint="probabilities"),
    Layout(tensor=2, structure="groups"),
    Layout(tensor=2, sequence=True),
    Layout(tensor=2, data=2, stage=3, sequence=True, structure="blocks"),
    Layout(tensor=2, trail=2, trunk="split", stage=1, ragged=True, sequence=True, joint="logits"),
    Layout(trail=2, data=2, trunk="split", stage=3, structure="groups"),
]
REFERENCES: dict[tuple, Record] = {}


def one_rank(precision: str = "fp32", ragged: bool = False, joint: str = "", structure: str = "entries") -> Record:
    """What one rank does: computed once for all that are compared with it."""
    key = (precision, ragged, joint, structure)
    if key not in REFERENCES:
        stage = int(precision == "bf16")
        layout = Layout(precision=precision, ragged=ragged, joint=joint, stage=stage, structure=structure)
        (record,) = run_distributed(train_whole, 1, layout)
        assert len(set(record.checksums)) == 4, "three updates must have changed the topology"
        assert max(record.norms) > 0.5, "clipping must have been at work"
        REFERENCES[key] = record
    return REFERENCES[key]


def assert_alike(
    records: list[Record], wanted: Record, relative: float = 1e-5, absolute: float = 1e-4, done: int = 0
) -> None:
    """Compare the records of all ranks, which began after step ``done``, with one rank's whole run."""
    for record in records:
        for losses, right in zip(record.losses, wanted.losses[done:], strict=True):
            assert losses == pytest.approx(right, rel=relative)
        assert record.norms == pytest.approx(wanted.norms[done:], rel=relative)
        assert record.evaluation == pytest.approx(wanted.evaluation, rel=relative, abs=1e-6)
        for key, found in record.slots.items():
            right = wanted.slots[key]
            assert torch.equal(found[0], right[0]), f"positions of {key}"
            for part, difference in zip(STATE, (found[1:] - right[1:]).abs().amax(1).tolist(), strict=True):
                assert difference <= absolute, f"{part} of {key} differs by {difference}"
    held = set().union(*(record.slots for record in records))
    assert held == set(wanted.slots), "together the ranks must hold the model"
    for record in records:
        assert record.checksums[-1] == wanted.checksums[-1]
        assert record.overlap == pytest.approx(wanted.overlap)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layout_trains_as_one_rank_does(layout):
    wanted = one_rank(ragged=layout.ragged, joint=layout.joint, structure=layout.structure)
    records = run_distributed(train_whole, layout.ranks, layout)
    assert_alike(records, wanted)
    for record in records:
        assert record.checksums == wanted.checksums
        assert record.updates == wanted.updates


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tensor=2, precision="bf16", stage=1),
        Layout(trail=2, data=2, trunk="replicated", precision="bf16", stage=2),
        Layout(trail=2, data=2, trunk="split", precision="bf16", stage=2),
    ],
    ids=str,
)
def test_bf16_stays_near(layout):
    """Scores that nearly tie are ranked otherwise after bf16's rounding: topologies part at the first update."""
    wanted = one_rank("bf16")
    for record in run_distributed(train_whole, layout.ranks, layout):
        assert record.checksums[0] == wanted.checksums[0]
        for losses, right in zip(record.losses, wanted.losses, strict=True):
            assert losses == pytest.approx(right, rel=3e-3)
        assert record.norms[:2] == pytest.approx(wanted.norms[:2], rel=5e-3)
        assert record.norms[2:4] == pytest.approx(wanted.norms[2:4], rel=2e-2)  # rewired once
        assert record.norms[4:] == pytest.approx(wanted.norms[4:], rel=0.15)  # three rewired models by then
        assert record.evaluation == pytest.approx(wanted.evaluation, rel=1e-2, abs=5e-2)


def test_ragged_rows_are_padded_and_their_answers_alone_count():
    """What the layouts above are held to: ranks with unequal numbers of targets, rows with gaps, and some with none."""
    counted = [sum(int(batch.weights.sum()) for batch in next(rows_from(0, rank, 2))) for rank in range(2)]
    assert counted[0] != counted[1]
    rows = torch.cat([batch.weights for step in islice(rows_from(0, 0, 1), STEPS) for batch in step])
    assert bool((rows.diff() > 0).any()) and not bool(rows.any(1).all())


def _train_and_save(rank, world_size, layout, folder, last):
    run = Run(layout).train(last)
    path = run.save(folder)
    return path, run.record.checksums[-1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint in the middle of a run of four ranks, and the topology in it."""
    layout = Layout(tensor=2, data=2, stage=1)
    return run_distributed(_train_and_save, 4, layout, tmp_path_factory.mktemp("saved"), SAVED)[0]


def _go_on(rank, world_size, layout, path):
    return Run(layout).load(path).train(STEPS).finish()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(pipe=2),
        Layout(trail=2, storage="masked"),
        Layout(),
        Layout(data=2, stage=3),
        Layout(tensor=2, data=2, stage=1),
    ],
    ids=str,
)
def test_a_checkpoint_goes_on_in_another_layout(saved, layout):
    _assert_goes_on(*saved, layout)


def test_a_checkpoint_of_blocks_goes_on_in_another_layout(tmp_path):
    saved, *_ = run_distributed(_train_and_save, 2, Layout(tensor=2, structure="blocks"), tmp_path, SAVED)
    _assert_goes_on(*saved, Layout(trail=2, data=2, trunk="split", stage=2, structure="blocks"))


def _assert_goes_on(path, checksum, layout):
    records, wanted = run_distributed(_go_on, layout.ranks, layout, path), one_rank(structure=layout.structure)
    assert_alike(records, wanted, done=SAVED)
    for record in records:
        assert record.checksums == wanted.checksums[1:] and record.checksums[0] == checksum


def _corrupt(rank, world_size, layout, name):
    run = Run(layout)
    run.updater.check("the start")
    if rank == 1:
        weight = run.weights[name]
        positions, first = weight.slot_positions(), slice(weight.spec.slots(weight.shards.start))
        free = next(place for place in range(positions.max()) if place not in positions[0, first])
        positions[0, 0] = free
        positions[0, first] = positions[0, first].sort().values
        weight.set_positions(positions)
    try:
        run.updater.check("the update at step 50")
    except TopologyError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize(
    ("layout", "name", "found"),
    [
        (Layout(trail=2), "blocks.0.mlp.up", True),  # in the trunk: both ranks hold it
        (Layout(trail=2), "blocks.1.mlp.up", False),  # trails 3 to 5, which no other rank has
        (Layout(tensor=2), "blocks.0.mlp.up", False),
    ],
    ids=["trunk over trails", "trails", "shards"],
)
def test_topologies_are_compared_where_there_are_copies(layout, name, found):
    for message in run_distributed(_corrupt, 2, layout, name):
        assert message.startswith(f"{name}: the topologies of its replicas differ") == found, message
        assert ("(trail 1, shard 0" in message) == found, message


def _disagree(rank, world_size, trunk):
    """Gradients of the trunk that differ between its replicas, as two GPUs' may by a bit; here by a lot."""
    run = Run(Layout(trail=2, trunk=trunk, stage=1, precision="bf16"))
    noise = torch.Generator().manual_seed(rank)

    def other(take):
        def noisy(dense, **how):
            return take(dense + torch.randn(dense.shape, generator=noise).to(dense) * dense.abs().max(), **how)

        return noisy

    for weight in run.weights.values():
        if not weight.spec.in_trail:
            weight.take_gradient = other(weight.take_gradient)
    record = run.train(2).finish()  # the topologies of replicas are compared after the update
    return {key: slots for key, slots in record.slots.items() if not run.weights[key[0]].spec.in_trail}


@pytest.mark.parametrize("trunk", ["split", "replicated"])
def test_replicas_of_the_trunk_stay_the_same_to_the_bit(trunk):
    first, second = run_distributed(_disagree, 2, trunk)
    assert first.keys() == second.keys() and first
    for key, slots in first.items():
        assert torch.equal(slots, second[key]), key


def _own_nothing(rank, world_size):
    run = Run(Layout(trail=2, stage=1, precision="bf16"))
    for weight in run.weights.values():
        weight.values.model_parallel = rank == 0  # as on a pipeline stage of trunk blocks
    return run.train(1).record.norms


def test_a_rank_may_own_nothing():
    first, second = run_distributed(_own_nothing, 2)
    assert first == second and 0 < first[0] < one_rank("bf16").norms[0]


def _overflow(rank, world_size, layout):
    run = Run(layout)
    if rank == world_size - 1:  # a part of the model that no other rank holds
        run.weights["output"].values.register_hook(lambda gradient: gradient * torch.inf)
    before = run.updater.check("the start")
    batches = batches_of(1, run.mesh.data.rank, run.mesh.data.degree, False)
    result = train_step(run.engine, run.config, run.mesh, batches, 2, run.updater.collects_at(2))
    run.updater.skip()
    return result.applied, result.grad_norm, run.state.step, before == run.updater.check("a skipped step")


@pytest.mark.parametrize(
    "layout",
    [
        Layout(trail=2),
        Layout(trail=2, stage=1, precision="bf16"),
        Layout(tensor=2, stage=2),
    ],
    ids=str,
)
def test_all_ranks_skip_a_step_together(layout):
    assert run_distributed(_overflow, 2, layout) == [(False, float("inf"), 0, True)] * 2
