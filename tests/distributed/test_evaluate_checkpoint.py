"""A checkpoint gives the evaluation of its run, on any number of ranks, and on other texts."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from nt_dist.errors import CheckpointError, ConfigError, DataError, RunError
from nt_dist.families import make_config
from nt_dist.testing import RankError, run_distributed
from nt_dist.text.settings import CORRUPTIONS

STEPS = 3  # with an update after the second


def _texts(folder, seed, documents):
    """Files of words that a very small tokenizer can learn."""
    folder.mkdir()
    words = ["trail", "trunk", "fork", "slot", "index", "grow", "drop", "sparse", "dense", "shard", "mesh", "rank"]
    draw = random.Random(seed)
    for number in range(documents):
        (folder / f"{number}.txt").write_text(" ".join(draw.choices(words, k=60)) + ".\n")
    return folder


def _sections(folder, precision):
    return {
        "model": {"hidden_size": 16, "ffn_size": 32, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
        | {"max_seq_len": 8},
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.4, "topology_shards": 4, "update_every": 2},
        "data": {"source": "text", "path": str(folder / "train"), "validation": str(folder / "validation")}
        | {"num_workers": 0},
        "train": {"recipe": "paper", "steps": 10, "batch_size": 6, "micro_batch_size": 3, "lr": 0.05, "warmup_steps": 0}
        | {"precision": precision, "average_decay": 0.6, "average_from": 0.0},
        "run": {"dir": str(folder / "run"), "eval_batches": 2},
    }


def _train(rank, world_size, folder, precision):
    """A run of three steps that evaluates and saves, as the trainer does."""
    from nt_dist.checkpoint.checkpoint import save
    from nt_dist.checkpoint.manifest import TrainingState
    from nt_dist.data.loader import EvaluationBatches, StepLoader
    from nt_dist.engine.averaging import average_weights, averaged
    from nt_dist.engine.engine import build_engine, train_step
    from nt_dist.engine.optimizer_state import optimizer_state
    from nt_dist.evaluation.evaluate import evaluate
    from nt_dist.model.trails import build_model
    from nt_dist.parallel.mesh import init_mesh
    from nt_dist.text.prepare import open_data
    from nt_dist.training.topology_updates import TopologyUpdater

    config = make_config(_sections(folder, precision), None, world_size)
    mesh, data, model = init_mesh(config), open_data(config), build_model(config)
    engine = build_engine(config, model, mesh)
    state = optimizer_state(engine)
    state.create()
    topology = TopologyUpdater(config, mesh, model, state, engine)
    batches = iter(StepLoader(data.train, 0, 6, 3, 0, 1, 0, 0))
    for step in range(1, STEPS + 1):
        train_step(engine, config, mesh, next(batches), step, topology.collects_at(step))
        average_weights(config, model, state, step)
        if step == 1:
            save(folder / "run" / "checkpoints", config, mesh, model, state, TrainingState(1, 6, 1, data.digest))
        if topology.updates_at(step):
            topology.update(step)
    with averaged(model, state):
        figures = evaluate(model, EvaluationBatches(data.validation, 3, num_samples=12), mesh, config)
    save(folder / "run" / "checkpoints", config, mesh, model, state, TrainingState(STEPS, 18, STEPS, data.digest))
    return figures


def _evaluate(rank, world_size, path, data=None, overrides=(), **options):
    from nt_dist.evaluation.evaluate_checkpoint import evaluate_checkpoint, join

    return evaluate_checkpoint(Path(path), join(world_size), data, overrides, **options)


def _evaluate_fully(rank, world_size, path, shift, overrides=()):
    return _evaluate(rank, world_size, path, overrides=overrides, full=True, shift=shift)


def _evaluate_corrupted(rank, world_size, path):
    return _evaluate(rank, world_size, path, corruptions=True)


def _run(folder, precision):
    for seed, name in enumerate(("train", "validation", "other")):
        _texts(folder / name, seed, 30)
    return folder, run_distributed(_train, 1, folder, precision)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder and what it found of itself."""
    return _run(tmp_path_factory.mktemp("run"), "fp32")


def _assert_equal(found, expected, rel):
    assert found["tokens"] == expected["tokens"]
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=rel, abs=1e-3 if key == "ensemble_gain" else 1e-6), key


def test_it_is_the_runs_own_evaluation_on_any_number_of_ranks(run):
    folder, expected = run
    assert expected["tokens"] == 12 * 8
    (alone,) = run_distributed(_evaluate, 1, folder / "run")  # the run's folder: its newest checkpoint
    assert alone.step == STEPS and alone.checkpoint.endswith("step-00000003")
    _assert_equal(alone.figures, expected, rel=1e-6)
    # three ranks divide neither the batch of training nor the samples
    first, *others = run_distributed(_evaluate, 3, alone.checkpoint)
    assert all(each.figures == first.figures for each in others)
    _assert_equal(first.figures, expected, rel=1e-5)


def test_a_bf16_run_is_evaluated_in_bf16(tmp_path):
    folder, expected = _run(tmp_path, "bf16")
    (result,) = run_distributed(_evaluate, 1, folder / "run")
    _assert_equal(result.figures, expected, rel=1e-6)


def test_other_texts_and_settings(run):
    folder, expected = run
    every = run_distributed(_evaluate, 2, folder / "run", None, ["run.eval_batches=0"])[0].figures
    assert every["tokens"] > expected["tokens"]
    other = run_distributed(_evaluate, 2, folder / "run", str(folder / "other"))[0]
    assert other.data == str(folder / "other")
    assert other.figures["ppl_trails"] != pytest.approx(expected["ppl_trails"], rel=1e-4)


def test_table_and_json_hold_the_figures(run, tmp_path):
    folder, expected = run
    (result,) = run_distributed(_evaluate, 1, folder / "run")
    assert f"{expected['ppl_ensemble_prob']:.2f}" in result.table() and "step 3" in result.table()
    result.write_json(tmp_path / "eval.json")
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["eval"] == result.figures and content["step"] == STEPS
    assert os.listdir(tmp_path) == ["eval.json"]


def _numbers(thing):
    """All numbers in nested figures, in order."""
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, list):
        return [number for each in thing for number in _numbers(each)]
    return [thing] if isinstance(thing, int | float) else []


def test_all_figures_on_any_number_of_ranks(run, tmp_path):
    folder, expected = run
    (alone,) = run_distributed(_evaluate_fully, 1, folder / "run", "corrupt:1")
    first, second = (each.figures for each in run_distributed(_evaluate_fully, 2, folder / "run", "corrupt:1"))
    assert first == second
    found = alone.figures
    assert len(_numbers(found)) > 200
    assert _numbers(first) == pytest.approx(_numbers(found), rel=1e-4, abs=1e-6)
    _assert_equal({key: found[key] for key in expected}, expected, rel=1e-6)

    scaling = found["calibration"]["temperature"]
    assert scaling["fit_tokens"] == scaling["tokens"] == expected["tokens"] / 2
    topology = found["topology"]
    assert topology["checkpoints"] == [1, STEPS]
    assert 0 < topology["churn"][0]["share"] < 0.5 < topology["ever_active"] / topology["density"] < 2
    shift = found["shift"]
    assert shift["samples"] == {"unshifted": 12, "shifted": 12}
    assert shift["eval"]["tokens"] == expected["tokens"]
    assert shift["eval"]["ppl_ensemble_prob"] > expected["ppl_ensemble_prob"]
    assert "topology" not in shift["eval"] and "temperature" not in shift["eval"]["calibration"]

    alone.write_json(tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text())["eval"] == found
    for title in ("calibration", "temperature scaling", "diversity", "topology", "shift: the same text, 1 of each"):
        assert title in alone.table()


def test_misspelt_text_as_shift(run):
    folder, expected = run
    (found,) = run_distributed(_evaluate_fully, 1, folder / "run", "misspell:0.3")
    shift = found.figures["shift"]
    assert shift["against"] == "the same text, 0.3 of its characters mistyped"
    assert shift["samples"] == {"unshifted": 12, "shifted": 12}
    assert shift["eval"]["ppl_ensemble_prob"] > expected["ppl_ensemble_prob"]


def test_every_corruption_at_every_level(run):
    folder, expected = run
    (alone,) = run_distributed(_evaluate_corrupted, 1, folder / "run")
    first, second = (each.figures for each in run_distributed(_evaluate_corrupted, 2, folder / "run"))
    assert first == second and _numbers(first) == pytest.approx(_numbers(alone.figures), rel=1e-4, abs=1e-6)
    _assert_equal({key: alone.figures[key] for key in expected}, expected, rel=1e-6)
    found = alone.figures["corruptions"]
    assert (found["level"], found["levels"]) == ("share", [0.05, 0.1, 0.2, 0.4])
    assert list(found["kinds"]) == [*CORRUPTIONS.kinds]
    nll = [[each["nll"]["prob"] for each in levels] for levels in found["kinds"].values()]
    assert all(each[0] < each[-1] for each in nll)
    assert found["mean"]["nll"]["prob"] == pytest.approx(sum(map(sum, nll)) / 8)
    second_trail = [each["accuracy"]["trails"][1] for levels in found["kinds"].values() for each in levels]
    assert found["mean"]["accuracy"]["trails"][1] == pytest.approx(sum(second_trail) / 8)
    (shifted,) = run_distributed(_evaluate_fully, 1, folder / "run", "misspell:0.2")
    ece = shifted.figures["shift"]["eval"]["calibration"]["ece"]
    assert _numbers(found["kinds"]["misspell"][2]["ece"]) == pytest.approx(_numbers(ece))
    table = alone.table().split("corruptions: ")[1]
    assert f"{found['kinds']['corrupt'][3]['accuracy']['prob']:.1%}" in table and "not corrupted" in table


def test_another_text_as_shift(run):
    folder, _ = run
    other = str(folder / "other")
    (found,) = run_distributed(_evaluate_fully, 1, folder / "run", other)
    (itself,) = run_distributed(_evaluate, 1, folder / "run", other)
    assert found.figures["shift"]["against"] == other
    for key, value in itself.figures.items():
        assert found.figures["shift"]["eval"][key] == pytest.approx(value), key


def test_bad_shifts_and_too_little_text_are_refused(run):
    folder, _ = run
    one_sequence = ["run.eval_batches=1", "train.batch_size=1", "train.micro_batch_size=1"]
    for shift, overrides, error, message in (
        ("corrupt:1.5", [], RunError, r"--shift corrupt:1.5: the share must be a number in \(0, 1\]"),
        ("corrupt:much", [], RunError, "--shift corrupt:much"),
        ("misspell:", [], RunError, "--shift misspell:: the share must be"),
        (str(folder / "nothing"), [], DataError, "nothing"),
        (" ", [], RunError, "--shift ' ': must be a path"),
        (None, one_sequence, DataError, "need two sequences"),
    ):
        with pytest.raises(RankError, match=message) as raised:
            run_distributed(_evaluate_fully, 1, folder / "run", shift, overrides)
        assert isinstance(raised.value.error, error)


def test_another_familys_corruption_is_no_corruption_of_texts(run):
    folder, _ = run
    with pytest.raises(RankError, match="gaussian_noise:3") as raised:
        run_distributed(_evaluate_fully, 1, folder / "run", "gaussian_noise:3")
    assert isinstance(raised.value.error, DataError)


def test_what_cannot_be_evaluated_is_refused_on_every_rank(run, tmp_path):
    folder, _ = run
    (tmp_path / "checkpoints").mkdir()
    for path, data, overrides, error, message in (
        (folder / "nowhere", None, [], CheckpointError, "nowhere"),
        (tmp_path, None, [], CheckpointError, "no checkpoint in it"),
        (folder / "run", None, ["model.hidden_size=32"], CheckpointError, "another model"),
        (folder / "run", None, ["run.eval_batch=0"], ConfigError, "run.eval_batches"),
        (folder / "run", str(folder / "nothing"), [], DataError, "nothing"),
    ):
        with pytest.raises(RankError, match=message) as raised:
            run_distributed(_evaluate, 2, path, data, overrides)
        assert isinstance(raised.value.error, error)


def test_changed_training_texts_are_noticed_where_they_are_prepared_anew(run):
    """As long as what was prepared is there, it is what the run was trained on."""
    folder, expected = run
    new, prepared, away = folder / "train" / "new.txt", folder / "run" / "data", folder / "away"
    new.write_text("another text.\n")
    try:
        _assert_equal(run_distributed(_evaluate, 1, folder / "run")[0].figures, expected, rel=1e-6)
        prepared.rename(away)
        with pytest.raises(RankError, match="trained on other data"):
            run_distributed(_evaluate, 1, folder / "run")
        shutil.rmtree(prepared)
        away.rename(prepared)
    finally:
        new.unlink()
