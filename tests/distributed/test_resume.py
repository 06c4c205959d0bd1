"""Runs that go on: the same to the last bit as one that was never interrupted. And runs that must not go on."""

import json
import shutil
import weakref
from itertools import pairwise
from unittest import mock

import pytest
import torch
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nt_dist.checkpoint.manifest import read_manifest
from nt_dist.errors import CheckpointError, CorruptionError, RunError
from nt_dist.families import make_config
from nt_dist.testing import RankError, run_distributed
from nt_dist.training.metrics_log import MEASURED, read_metrics
from nt_dist.training.run_folder import claim

STEPS, SAVED, KILLED = 20, 10, 13  # topologies are updated every 4 steps: before and after each of these
WORDS = ["the", "sea", "wind", "stone", "light", "river", "carries", "under", "every", "small", "grey", "morning"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of 400 lines, a document each, with some order in it."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [" ".join(WORDS[(k * k + k * j) % len(WORDS)] for j in range(5 + k % 9)) for k in range(400)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def _sections(corpus, folder, **run):
    return {
        "model": {
            "hidden_size": 32,
            "ffn_size": 64,
            "num_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 288,
            "max_seq_len": 16,
        },
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.5, "topology_shards": 4, "update_every": 4},
        "data": {
            "source": "jsonl",
            "path": str(corpus),
            "validation": 0.1,
            "prepared": str(corpus.parent / "prepared"),
        },
        "train": {
            "recipe": "paper",
            "steps": STEPS,
            "batch_size": 8,
            "micro_batch_size": 2,
            "lr": 1e-2,
            "warmup_steps": 5,
            "weight_decay": 0.1,
            "grad_clip": 0.5,
            "average_decay": 0.9,
            "average_from": 0.3,
        },
        "run": {"dir": str(folder), "log_every": 1, "eval_every": 5, "eval_batches": 2, "save_every": SAVED, **run},
    }


def _train(rank, world_size, sections, stage, failing_saves=(), poisoned_at=0, flipped_at=0):
    from nt_dist.checkpoint import checkpoint
    from nt_dist.training import loop

    collect, train_step = checkpoint.collect, loop.train_step

    def collect_or_fail(config, mesh, model, optimizer_state, progress):
        if progress.step in failing_saves:
            raise CheckpointError("no space left")
        return collect(config, mesh, model, optimizer_state, progress)

    def poison_and_train_step(engine, config, mesh, micro_batches, step, collect):
        if step == poisoned_at:
            next(engine.module.parameters()).data.fill_(float("nan"))
        if step == flipped_at and rank == 1:
            next(engine.module.parameters()).data.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 20)
        return train_step(engine, config, mesh, micro_batches, step, collect)

    with (
        mock.patch.object(checkpoint, "collect", collect_or_fail),
        mock.patch.object(loop, "train_step", poison_and_train_step),
    ):
        return loop.train(make_config(sections, {"zero_optimization": {"stage": stage}}, world_size))


def _run(ranks, sections, stage):
    assert run_distributed(_train, ranks, sections, stage) == [0] * ranks


def _refused(error, match, ranks, sections, failing_saves=(), poisoned_at=0, flipped_at=0):
    with pytest.raises(RankError, match=match) as caught:
        run_distributed(_train, ranks, sections, 0, failing_saves, poisoned_at, flipped_at)
    assert isinstance(caught.value.error, error)


def _contents(folder):
    """Every file of a run but its lock and what it has said, by name."""
    own = ".lock", "train.log"
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in own)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def _fragments(checkpoint):
    """Every tensor of a checkpoint by its key."""
    return {key: value for path in checkpoint.glob("*.safetensors") for key, value in load_file(path).items()}


def _same(records):
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


@pytest.mark.parametrize(
    ("stage", "ranks", "degrees"),
    [(0, 1, {}), (1, 2, {}), (2, 2, {}), (3, 2, {}), (0, 4, {"pipe": 2, "tensor": 2})],
)
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(tmp_path, corpus, stage, ranks, degrees):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    parallel = {"parallel": degrees}
    _run(ranks, _sections(corpus, whole) | parallel, stage)
    _run(ranks, _sections(corpus, broken, stop_after=KILLED) | parallel, stage)
    assert read_metrics(broken / "metrics.jsonl")[-1]["step"] == KILLED
    shutil.rmtree(broken / "checkpoints" / f"step-{KILLED:08d}")  # as if it had been killed after that step
    _run(ranks, _sections(corpus, broken) | parallel, stage)

    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (whole, broken))
    assert _same(found) == _same(expected)
    logged = [record for record in expected if "loss" in record]
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    assert len({record["topology_checksum"] for record in logged}) == 5  # the first topology and four updates
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.3  # it learns
    assert [record["step"] for record in expected if "eval" in record] == [5, 10, 15, 20]

    last = f"checkpoints/step-{STEPS:08d}"
    before, after = _fragments(whole / last), _fragments(broken / last)
    assert before.keys() == after.keys()
    assert {key.rsplit("/", 1)[1] for key in before} == {"positions", "value", "exp_avg", "exp_avg_sq", "average"}
    averages = {key: each for key, each in before.items() if key.endswith("average")}
    assert not any((each == before[key.replace("average", "value")]).all() for key, each in averages.items())
    different = [key for key in before if before[key].tobytes() != after[key].tobytes()]
    assert different == []
    progress = [read_manifest(folder / last).training_state for folder in (whole, broken)]
    assert progress[0] == progress[1]
    assert (progress[0].step, progress[0].adam_step, progress[0].consumed_samples) == (STEPS, STEPS, STEPS * 8)

    events = EventAccumulator(str(broken / "tensorboard" / broken.name))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, STEPS + 1))


def _train_and_watch(rank, world_size, sections, stage):
    """Train; return for each stage of the density whether its model was gone when the next was built."""
    from nt_dist.training import loop

    built, gone = [], []

    def build(config, mesh):
        gone.extend(each() is None for each in built[-1:])
        model = build_mesh_model(config, mesh)
        built.append(weakref.ref(next(model.parameters())))
        return model

    build_mesh_model = loop.build_mesh_model
    with mock.patch.object(loop, "build_mesh_model", build):
        assert _train(rank, world_size, sections, stage) == 0
    return gone


def test_a_falling_density_is_the_same_in_every_layout_and_frees_memory(tmp_path, corpus):
    falls = {"density": 0.3, "start_density": 1.0, "density_stages": 2, "density_until": 0.5, "update_every": 2}

    def sections(name, degrees, **run):
        """Prunings after steps 3 and 6, updates after 4, 8 and 10."""
        given = _sections(corpus, tmp_path / name, eval_every=0, save_every=0, **run)
        given["sparsity"] |= falls
        given["train"] |= {"steps": 12, "warmup_steps": 2, "adam_eps": 1e-4}
        return given | {"parallel": degrees}

    layouts = {"one": (1, 0, {}), "data": (2, 3, {}), "cut": (2, 1, {"trail": 2}), "pipe": (2, 0, {"pipe": 2})}
    runs = {}
    for name, (ranks, stage, degrees) in layouts.items():
        if name == "data":  # killed after a pruning, before anything else
            run_distributed(_train_and_watch, ranks, sections(name, degrees, stop_after=3), stage)
        stages = run_distributed(_train_and_watch, ranks, sections(name, degrees), stage)
        assert all(all(gone) and len(gone) == (1 if name == "data" else 2) for gone in stages), stages
        runs[name] = [record for record in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in record]
    densities = [record["density"] for record in runs["one"]]
    assert densities == pytest.approx([1.0] * 3 + [0.3 + 0.7 / 8] * 3 + [0.3] * 6, abs=0.01)
    for records in runs.values():
        assert [record["density"] for record in records] == densities
        assert [record["loss"] for record in records] == pytest.approx([each["loss"] for each in runs["one"]], rel=1e-4)
        checksums = [record["topology_checksum"] for record in records]
        assert checksums == [record["topology_checksum"] for record in runs["one"]]
        changes = [step for step, pair in enumerate(pairwise(checksums), 2) if pair[0] != pair[1]]
        assert changes == [4, 7, 8, 10]
    held = read_manifest(tmp_path / "one" / "checkpoints" / "step-00000006")
    assert held.config["sparsity"]["density"] == pytest.approx(
        0.3 + 0.7 / 8
    )  # it is that of a model before its pruning


def test_a_finished_run_is_left_as_it_is_and_refuses_another_model(tmp_path, corpus):
    sections = _sections(corpus, tmp_path, save_every=2)
    sections["train"] |= {"steps": 4, "warmup_steps": 1}
    _run(1, sections, 0)
    before = _contents(tmp_path)
    _run(1, sections, 0)
    assert _contents(tmp_path) == before
    _run(1, sections | {"run": {**sections["run"], "stop_after": 2}}, 0)  # it is past that
    assert _contents(tmp_path) == before
    other = sections | {"trails": {"count": 3, "layers": 1}}
    _refused(CheckpointError, r"trails\.count", 1, other)
    longer = sections | {"train": {**sections["train"], "steps": 6}}
    _refused(CheckpointError, r"train\.steps", 1, longer)
    assert _contents(tmp_path) == before
    longer["run"] = {**longer["run"], "allow_schedule_change": True}
    _run(1, longer, 0)
    assert _checkpoints(tmp_path)[-1] == "step-00000006"


def test_a_finished_run_goes_on_with_other_texts_where_that_is_allowed(tmp_path, corpus):
    """Refused before anything is prepared; then in the order of the new texts, with its tokenizer and its zeros."""
    first, tuned, prepared = tmp_path / "first", tmp_path / "tuned", corpus.parent / "prepared"
    sections = _sections(corpus, first)
    sections["train"] |= {"steps": 2, "warmup_steps": 1}
    _run(1, sections, 0)
    before = sorted(prepared.glob("*/*"))
    sections["run"] = {**sections["run"], "dir": str(tuned), "resume_from": str(first)}
    sections["train"] |= {"steps": 4}
    sections["sparsity"] |= {"update_every": 0}
    for name, rule in (("other.jsonl", r"data\.path = .*differs"), (corpus.name, r"names other texts")):
        other = tmp_path / name
        other.write_text("".join(reversed(corpus.read_text().splitlines(keepends=True)[:200])))
        changed = sections | {"data": {**sections["data"], "path": str(other)}}
        if name == corpus.name:
            changed |= {"train": {**changed["train"], "steps": 2}, "sparsity": _sections(corpus, first)["sparsity"]}
        with pytest.raises(RankError, match=rule) as caught:
            run_distributed(_train, 1, changed, 0)
        assert "run.allow_schedule_change=true" in str(caught.value) and sorted(prepared.glob("*/*")) == before
    changed = sections | {"data": {**sections["data"], "path": str(tmp_path / "other.jsonl")}}
    changed["run"]["allow_schedule_change"] = True
    _run(1, changed, 0)
    _run(1, changed | {"train": {**changed["train"], "steps": 5}}, 0)
    saved = [first / "checkpoints/step-00000002", *(tuned / f"checkpoints/step-0000000{step}" for step in (4, 5))]
    states = [read_manifest(path).training_state for path in saved]
    _run(1, changed | {"train": {**changed["train"], "steps": 6}, "data": {**changed["data"], "layout": "rows"}}, 0)
    states.append(read_manifest(tuned / "checkpoints/step-00000006").training_state)
    assert [state.consumed_samples for state in states] == [16, 16, 24, 8]  # rows are counted anew
    assert len({state.extra["tokenizer_sha256"] for state in states}) == 1
    assert states[0].data_digest != states[1].data_digest == states[2].data_digest
    lines = [line for line in read_metrics(tuned / "metrics.jsonl") if "other_data" in line]
    assert all(line.pop("time") > 0 for line in lines)
    assert lines == [{"step": step, "other_data": states[1].data_digest, "consumed_samples": 0} for step in (3, 6)]
    logged = [line for each in (first, tuned) for line in read_metrics(each / "metrics.jsonl") if "loss" in line]
    assert len(logged) == 6 and len({line["topology_checksum"] for line in logged}) == 1


def test_a_save_that_fails_stops_the_run_only_at_its_end(tmp_path, corpus):
    sections = _sections(corpus, tmp_path, save_every=2)
    sections["train"] |= {"steps": 6, "warmup_steps": 1}
    _refused(CheckpointError, "no space left", 1, sections, failing_saves=(2, 6))
    assert _checkpoints(tmp_path) == ["step-00000004"]
    _run(1, sections, 0)
    assert _checkpoints(tmp_path) == ["step-00000004", "step-00000006"]


def test_weights_that_are_no_numbers_end_the_run_and_are_never_saved(tmp_path, corpus):
    sections = _sections(corpus, tmp_path, save_every=1, check_every=0)  # which would find such weights first
    sections["train"] |= {"max_bad_steps": 2}
    message = (
        "(?s)3 bad steps in a row are more than train.max_bad_steps = 2.*"
        r"step 2: its loss is no number \(loss nan, gradient norm inf, samples 8 to 15\); skipped.*step 4: "
    )
    _refused(RunError, message, 1, sections, poisoned_at=2)
    assert _checkpoints(tmp_path) == ["step-00000001"]
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if "bad_step" in record] == [2, 3]
    assert [record["steps_not_finite"] for record in records if "loss" in record] == [0, 1, 2]


def test_a_bit_flipped_in_one_rank_ends_the_run_before_it_is_saved(tmp_path, corpus):
    sections = _sections(corpus, tmp_path, save_every=2, check_every=3)
    message = "(?s)memory is corrupted at step 4.*embedding: the copies of its compute copy on ranks 0, 1 differ"
    _refused(CorruptionError, message, 2, sections, flipped_at=4)  # before the save, though no check is due
    assert _checkpoints(tmp_path) == ["step-00000002"]
    _refused(CorruptionError, "memory is corrupted at step 3", 2, sections, flipped_at=3)
    assert _checkpoints(tmp_path) == ["step-00000002"]


NOT_FINITE, SPIKED = 48, 96  # first sample numbers of two bad batches, those of steps 7 and 13
MARKS = {NOT_FINITE: 4, SPIKED: 5}  # the tokens that their targets consist of


def _train_over_bad_batches(rank, world_size, sections):
    """Train on data of which two batches are bad; return the exit code and the first sample number of every step."""
    from nt_dist.data.loader import StepLoader
    from nt_dist.parallel.place import MeshPlace
    from nt_dist.training import loop

    read, losses_of, firsts = StepLoader.step, MeshPlace.trail_losses, []

    def read_bad(loader, first):
        batches = read(loader, first)
        firsts.append(first)
        for batch in batches if first in MARKS and rank == 0 else ():  # on one rank alone
            batch.targets.fill_(MARKS[first])
        return batches

    def bad_losses(place, logits, targets, *rest):
        factors = (
            factor for first, factor in ((NOT_FINITE, torch.nan), (SPIKED, 1e4)) if (targets == MARKS[first]).all()
        )
        return losses_of(place, logits, targets, *rest) * next(factors, 1.0)

    with (
        mock.patch.object(StepLoader, "step", read_bad),
        mock.patch.object(MeshPlace, "trail_losses", bad_losses),
    ):
        return loop.train(make_config(sections, {"zero_optimization": {"stage": 1}}, world_size)), firsts


def test_a_run_that_goes_back_leaves_the_bad_batch_out_also_when_it_is_killed_and_resumed(tmp_path, corpus):
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def sections(folder, **run):
        found = _sections(corpus, folder, **run)
        found["train"] |= {"on_spike": "rollback", "spike_window": 8, "max_bad_steps": 1}
        found["data"] |= {"num_workers": 0}
        return found

    size, last = 8, 8 * (STEPS + 2)  # the next step's batches are fetched before a step is judged
    again = [*range(SAVED * size, SPIKED, size), *range(SPIKED + size, last, size)]
    ordered = [*range(0, SPIKED + 2 * size, size), *again]
    assert run_distributed(_train_over_bad_batches, 2, sections(whole)) == [(0, ordered)] * 2
    run_distributed(_train_over_bad_batches, 2, sections(broken, stop_after=KILLED + 1))
    shutil.rmtree(broken / "checkpoints" / f"step-{KILLED + 1:08d}")  # as if it had been killed after that step
    run_distributed(_train_over_bad_batches, 2, sections(broken))

    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (whole, broken))
    assert _same(found) == _same(expected)
    bad = [
        (record["step"], record["bad_step"]["step"], record["bad_step"]) for record in expected if "bad_step" in record
    ]
    assert [(line, step) for line, step, _ in bad] == [(7, 7), (SAVED + 1, 13)]
    assert [each["what_was_done"] for *_, each in bad] == ["skipped", "rolled back"]
    assert [each["samples"] for *_, each in bad] == [[NOT_FINITE, NOT_FINITE + size], [SPIKED, SPIKED + size]]
    logged = [record for record in expected if "loss" in record]
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    counts = [logged[-1][key] for key in ("steps_not_finite", "steps_spiked", "rollbacks")]
    assert counts == [1, 1, 1] and logged[SAVED - 1]["rollbacks"] == 0

    last = f"checkpoints/step-{STEPS:08d}"
    before, after = _fragments(whole / last), _fragments(broken / last)
    assert [key for key in before if before[key].tobytes() != after[key].tobytes()] == []
    progress = [read_manifest(folder / last).training_state for folder in (whole, broken)]
    assert progress[0] == progress[1]
    assert (progress[0].adam_step, progress[0].consumed_samples) == (STEPS - 1, (STEPS + 1) * size)
    left_out = [[NOT_FINITE, NOT_FINITE + size], [SPIKED, SPIKED + size]]
    assert progress[0].extra["bad_steps"]["left_out"] == left_out


def test_two_runs_in_one_folder_are_refused_on_every_rank(tmp_path, corpus):
    folder = claim(tmp_path)
    sections = _sections(corpus, tmp_path)
    _refused(RunError, "another run is working in it", 2, sections)
    folder.close()
    assert _contents(tmp_path) == {}


def _in_layout(corpus, folder, **parallel):
    """A run cut over the axes of the model, with a larger Adam epsilon: what is 0 but for rounding stays near 0."""
    sections = _sections(corpus, folder)
    sections["train"] |= {"adam_eps": 1e-4, "lr": 3e-3}
    sections["parallel"] = parallel
    return sections


def test_a_run_changes_its_layout_in_the_middle(tmp_path, corpus):
    whole, moving = tmp_path / "whole", tmp_path / "moving"
    _run(1, _in_layout(corpus, whole), 0)
    sections = _in_layout(corpus, moving, trail=2)
    sections["run"]["stop_after"] = SAVED
    _run(4, sections, 1)  # and data 2
    _run(2, _in_layout(corpus, moving, tensor=2), 0)
    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (whole, moving))
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    assert len(found) == STEPS + STEPS // 5
    for record, right in zip(_same(found), _same(expected), strict=True):
        assert record.keys() == right.keys()
        figures, wanted = ((each.pop("eval", {}) for each in pair) for pair in ((record,), (right,)))
        for one, other in ((record, right), (next(figures), next(wanted))):
            assert one.pop("topology_checksum", "") == other.pop("topology_checksum", "")
            for key, value in one.items():
                assert value == pytest.approx(other[key], rel=1e-4, abs=1e-4), f"{key} of step {record['step']}"
