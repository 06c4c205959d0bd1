"""A pipeline trains as one rank does: losses, gradient norms, topologies, weights, moments and evaluation."""

from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch

from nt_dist.checkpoint.checkpoint import load, save
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config.keys import keys_of
from nt_dist.config.settings import Parallel
from nt_dist.data.loader import Batch
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import State, optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.engine.stages import stage_bounds
from nt_dist.evaluation.evaluate import evaluate
from nt_dist.evaluation.topology import trail_overlap
from nt_dist.families import make_config
from nt_dist.model.chunks import LOGITS_AT_ONCE
from nt_dist.model.trails import layer_names, weights_of
from nt_dist.parallel.mesh import init_mesh
from nt_dist.testing import run_distributed
from nt_dist.training.topology_updates import TopologyUpdater
from tests.distributed.layout_case import joint_settings

STEPS, SAVED, BATCH, MICRO_BATCH, SEQUENCE, VOCABULARY = 7, 3, 8, 2, 8, 29  # updates before and after SAVED


@dataclass(frozen=True)
class Layout:
    """How a run is spread: ZeRO stage, precision, degrees, and what differs in the config."""

    stage: int = 0
    precision: str = "fp32"
    pipe: int = 1
    tensor: int = 1
    trail: int = 1
    trunk: str = "auto"
    sequence_parallel: bool = False
    trunk_layers: int = 1
    trails: int = 6
    checkpointing: bool = False
    regrow_from: str = "all"
    update_every: int = 2
    seed: int = 0
    joint: str = ""


@dataclass
class Record:
    """What a run did, on one rank; the states are those of all ranks together, by weight, trail and shard."""

    losses: list[list[float]]
    norms: list[float]
    checksums: list[str]
    regrown: list[float]
    figures: dict
    states: dict[tuple[str, int, int], State]


def config_of(world_size, layout):
    """A tiny model of 6 trails by default with clipping on, which is updated after steps 2, 4 and 6."""
    joint = joint_settings(layout.joint) if layout.joint else {}
    sections = {
        "model": {
            "hidden_size": 16,
            "ffn_size": 24,
            "num_layers": layout.trunk_layers + 2,
            "num_attention_heads": 2,
            "vocab_size": VOCABULARY,
            "max_seq_len": SEQUENCE,
        },
        "trails": {"count": layout.trails, "layers": 2, **joint},
        "sparsity": {
            "density": 0.4,
            "topology_shards": 2,
            "update_every": layout.update_every,
            "storage": "compact",
            "new_moments": "gradient",
            "regrow_from": layout.regrow_from,
        },
        "train": {
            "recipe": "paper",
            "steps": STEPS,
            "batch_size": BATCH,
            "micro_batch_size": MICRO_BATCH,
            "lr": 3e-3,
            "warmup_steps": 2,
            "seed": layout.seed,
            "adam_eps": 1e-4,
            "weight_decay": 0.1,
            "lr_embedding": 2.0,
            "lr_output": 0.5,
            "lr_trunk": 1.5,
            "grad_clip": 0.5,
            "precision": layout.precision,
            "activation_checkpointing": layout.checkpointing,
        },
        "parallel": {each: getattr(layout, each) for each in keys_of(Parallel)},
    }
    return make_config(sections, {"zero_optimization": {"stage": layout.stage}}, world_size)


def batches_of(step, mesh):
    """One data rank's micro-batches of a global step of ragged rows."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)
    lengths = torch.randint(2, SEQUENCE + 1, (BATCH,), generator=generator)
    weights = (torch.arange(SEQUENCE) < lengths[:, None]).float()
    share = BATCH // mesh.data.degree
    mine = slice(mesh.data.rank * share, (mesh.data.rank + 1) * share)
    parts = zip(rows[mine].split(MICRO_BATCH), weights[mine].split(MICRO_BATCH), strict=True)
    return [Batch(part[:, :-1], part[:, 1:], weight) for part, weight in parts]


def start(config):
    """All parts of a run."""
    mesh = init_mesh(config)
    model = build_mesh_model(config, mesh)
    engine = build_engine(config, model, mesh)
    state = optimizer_state(engine)
    state.create()
    return mesh, model, engine, state, TopologyUpdater(config, mesh, model, state, engine)


def _states(mesh, model, door):
    """All weights' states by global numbers, each fragment the same on all ranks that have it."""
    mine = {}
    for name, weight in weights_of(model).items():
        slots = {part: weight.to_slots(each) for part, each in door.read(weight).items()}
        for trail in weight.trails:
            for shard in weight.shards:
                mine[name, trail, shard] = {
                    part: weight.fragment(each, trail, shard).clone() for part, each in slots.items()
                }
    whole = {}
    for states in mesh.gather_objects(mine):
        for key, state in states.items():
            same = whole.setdefault(key, state)
            assert all(torch.equal(same[part], state[part]) for part in state), f"{key} differs between ranks"
    return whole


def train(config, steps, parts):
    """Train through ``steps`` and record it; in fp32 a pipeline's losses come in chunks but where trails are joined."""
    if config.parallel.pipe > 1 and not config.trails.joint and config.train.precision == "fp32":
        with mock.patch.dict(LOGITS_AT_ONCE, {"cpu": 1000}):
            return _train(config, steps, parts)
    return _train(config, steps, parts)


def _train(config, steps, parts):
    mesh, model, engine, door, updater = parts
    record = Record([], [], [updater.check("the start")], [], {}, {})
    for step in steps:
        result = train_step(engine, config, mesh, batches_of(step, mesh), step, updater.collects_at(step))
        assert result.applied
        record.losses.append([*result.loss_per_trail, *([result.joint_loss] if config.trails.joint else [])])
        record.norms.append(result.grad_norm)
        if updater.updates_at(step):
            record.regrown.append(updater.update(step)[0])
            record.checksums.append(updater.check(f"the update at step {step}"))
    record.figures = evaluate(model, batches_of(99, mesh), mesh, config)
    overlap = trail_overlap(weights_of(model).values(), mesh)
    record.figures |= {"overlap": (overlap.jaccard, overlap.chance)}
    assert model.training and door.step == steps[-1]
    assert all(weight.dense_gradient is None and not weight.collecting for weight in weights_of(model).values())
    record.states = _states(mesh, model, door)
    return record


def _run(rank, world_size, layout, folder=None):
    """Train from the start to the end; with a folder, save after step SAVED."""
    config = config_of(world_size, layout)
    mesh, model, _, door, _ = parts = start(config)
    early = train(config, range(1, SAVED + 1), parts)
    path = (
        save(folder, config, mesh, model, door, TrainingState(SAVED, SAVED * BATCH, door.step, "")) if folder else None
    )
    late = train(config, range(SAVED + 1, STEPS + 1), parts)
    return early, late, sorted(weights_of(model)), path


def _go_on(rank, world_size, layout, path):
    """Train from a checkpoint to the end."""
    config = config_of(world_size, layout)
    mesh, model, _, door, _ = parts = start(config)
    progress = load(path, config, mesh, model, door)
    return train(config, range(progress.step + 1, STEPS + 1), parts)


def assert_alike(record, wanted, relative=1e-5, absolute=1e-4):
    """Compare two records."""
    for losses, right in zip(record.losses, wanted.losses, strict=True):
        assert losses == pytest.approx(right, rel=relative)
    assert record.norms == pytest.approx(wanted.norms, rel=relative)
    assert record.checksums == wanted.checksums
    assert record.regrown == wanted.regrown
    for name in record.figures:
        assert record.figures[name] == pytest.approx(wanted.figures[name], rel=relative, abs=1e-4), name
    assert record.states.keys() == wanted.states.keys()
    for key, state in record.states.items():
        for part, found in state.items():
            difference = float((found - wanted.states[key][part]).abs().max())
            assert difference <= absolute, f"{key}.{part} differs by {difference}"


@pytest.fixture(scope="module")
def one_rank():
    """One rank in fp32, before and after step SAVED."""
    early, late, *_ = run_distributed(_run, 1, Layout())[0]
    assert len({*early.checksums, *late.checksums}) == 4, "three updates must have changed the topology"
    assert min(*early.norms, *late.norms) > 0.5, "clipping must have been at work"
    return early, late


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    """Two stages on two data ranks at ZeRO 1, blocks computed again in backward, saved after step SAVED."""
    layout = Layout(pipe=2, stage=1, checkpointing=True)
    return run_distributed(_run, 4, layout, tmp_path_factory.mktemp("saved"))


def _assert_trained_alike(answers, one_rank, **limits):
    for early, late, *_ in answers:
        assert_alike(early, one_rank[0], **limits)
        assert_alike(late, one_rank[1], **limits)
    held = [set(names) for _, _, names, _ in answers]
    assert held[0].isdisjoint(held[-1]) and "embedding" in held[0] and "output" in held[-1]


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, Layout(pipe=2)),
        (3, Layout(pipe=3, stage=1)),
        (4, Layout(pipe=2, tensor=2, sequence_parallel=True, stage=1)),
        (4, Layout(pipe=2, trail=2, trunk="split")),
        (4, Layout(pipe=2, trail=2, trunk="replicated", stage=1)),
    ],
    ids=(
        "pipe 2",
        "pipe 3, ZeRO 1",
        "pipe 2 x tensor 2, sequence, ZeRO 1",
        "pipe 2 x trail 2, split trunk",
        "pipe 2 x trail 2, replicated trunk, ZeRO 1",
    ),
)
def test_a_pipeline_trains_as_one_rank_does(ranks, layout, one_rank):
    _assert_trained_alike(run_distributed(_run, ranks, layout), one_rank)


@pytest.mark.parametrize(
    ("trunk_layers", "first_of_last_stage"), [(2, "fork"), (4, "blocks.3")], ids=("at the fork", "in the trunk")
)
def test_a_cut_before_the_fork_of_a_split_trunk(trunk_layers, first_of_last_stage):
    """What passes the cut is a share of the micro-batch."""
    layout = Layout(trunk_layers=trunk_layers, trails=2, seed=1)  # with 0, two scores of an update are 1e-6 apart
    alone = run_distributed(_run, 1, layout)[0][:2]
    cut = replace(layout, pipe=2, trail=2, trunk="split", checkpointing=True)
    config = config_of(4, cut)
    assert layer_names(config)[stage_bounds(config)[1]] == first_of_last_stage
    _assert_trained_alike(run_distributed(_run, 4, cut), alone)


def test_stages_on_data_ranks_train_as_one_rank_does(four_ranks, one_rank):
    _assert_trained_alike(four_ranks, one_rank)


@pytest.mark.parametrize(
    ("ranks", "cut", "joint"), [(2, {"pipe": 2}, "logits"), (4, {"pipe": 2, "trail": 2}, "probabilities")]
)
def test_a_pipeline_trains_the_ensemble_as_one_rank_does(ranks, cut, joint):
    layout = Layout(joint=joint)
    alone = run_distributed(_run, 1, layout)[0][:2]
    _assert_trained_alike(run_distributed(_run, ranks, replace(layout, **cut)), alone)


def test_regrowth_from_the_last_micro_batch_of_each_stage():
    layout = Layout(regrow_from="last_micro_batch")
    alone = run_distributed(_run, 1, layout)[0][:2]
    _assert_trained_alike(run_distributed(_run, 2, replace(layout, pipe=2)), alone)


def test_bf16():
    layout = Layout(stage=1, precision="bf16")
    alone = run_distributed(_run, 1, layout)[0][:2]
    _assert_trained_alike(run_distributed(_run, 2, replace(layout, pipe=2)), alone)


def test_bf16_where_a_rank_of_the_first_stage_owns_nothing():
    # without updates: trails on two ranks sum the trunk's bf16 gradient in another order, and scores tie by that
    layout = Layout(stage=1, precision="bf16", update_every=0)
    alone = run_distributed(_run, 1, layout)[0][:2]
    answers = run_distributed(_run, 4, replace(layout, pipe=2, trail=2))
    _assert_trained_alike(answers, alone, relative=5e-3, absolute=5e-3)


def _poison_one_stage(rank, world_size, stage):
    """A gradient that is no number on the first stage alone; says whether steps were applied, and the norm."""
    config = config_of(world_size, Layout(pipe=2, stage=stage))
    mesh, model, engine, door, updater = start(config)
    poison = [True]
    if mesh.pipe.rank == 0:
        weights_of(model)["embedding"].values.register_hook(lambda grad: grad * torch.nan if poison[0] else grad)
    first = train_step(engine, config, mesh, batches_of(2, mesh), 2, updater.collects_at(2))
    updater.skip()
    poison[0] = False
    second = train_step(engine, config, mesh, batches_of(3, mesh), 3)
    return first.applied, first.grad_norm, second.applied, second.grad_norm < float("inf"), door.step


@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_that_one_stage_cannot_make_is_skipped_by_all(stage):
    assert run_distributed(_poison_one_stage, 2, stage) == [(False, float("inf"), True, True, 1)] * 2


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [(1, Layout()), (2, Layout(stage=3)), (4, Layout(pipe=2, trail=2))],
    ids=("one rank", "ZeRO 3", "pipe 2 x trail 2"),
)
def test_a_checkpoint_of_a_pipeline_goes_on_in_other_layouts(ranks, layout, four_ranks, one_rank):
    for record in run_distributed(_go_on, ranks, layout, four_ranks[0][3]):
        assert_alike(record, one_rank[1])
