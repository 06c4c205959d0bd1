"""A plan of runs: what it makes of its base and settings, and what it says of mistakes."""

from pathlib import Path

import pytest

from nt_dist.config.rules import warnings
from nt_dist.errors import ConfigError, RunError
from nt_dist.families import load_config
from nt_dist.model.weights import count_parameters
from nt_dist.study.plan import (
    SweepPoint,
    name_runs,
    parse_points,
    parse_together,
    plan_runs,
    plan_sweep,
    read_plan,
)

ROOT = Path(__file__).resolve().parents[3]
BASE = str(ROOT / "configs" / "quickstart.toml")
PLAN = f"""
base = "{BASE}"
dir = "runs/plan"

[settings]
train.steps = 40

[runs.dense]
trails.count = 1
sparsity.density = 1.0

[runs.sparse]
sparsity.exempt = ["blocks.*.attention.*"]
train.steps = 50

[runs.third]

[ensembles]
both = ["dense", "third"]
"""


def _write(folder, text=PLAN):
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_the_run_wins_over_the_settings_over_the_base_and_the_command_line_over_all(tmp_path):
    plan = read_plan(_write(tmp_path), ["train.lr=0.5"])
    dense, sparse, third = plan.runs.values()
    assert [run.config.train.steps for run in plan.runs.values()] == [40, 50, 40]
    assert (dense.config.trails.count, third.config.trails.count) == (1, 3)
    assert sparse.config.sparsity.exempt == ("blocks.*.attention.*",)
    assert all(run.config.train.lr == 0.5 for run in plan.runs.values())
    assert read_plan(_write(tmp_path), ["train.steps=70"]).runs["sparse"].config.train.steps == 70


def test_each_run_has_a_folder_and_all_share_the_prepared_texts(tmp_path):
    runs = read_plan(_write(tmp_path)).runs
    assert {run.dir for run in runs.values()} == {Path("runs/plan") / name for name in runs}
    assert {run.config.data.prepared for run in runs.values()} == {"runs/plan/data"}
    own = read_plan(_write(tmp_path), ["data.prepared=elsewhere"]).runs
    assert {run.config.data.prepared for run in own.values()} == {"elsewhere"}


def test_runs_of_a_family_that_prepares_nothing(tmp_path):
    base = str(ROOT / "configs" / "quickstart_images.toml")
    run = plan_runs(base, tmp_path, {"one": ["train.seed=1"]}, "plan")["one"]
    assert run.config.family.name == "resnet" and run.config == load_config(base, run.overrides)


def test_the_overrides_are_what_train_py_takes(tmp_path):
    for run in read_plan(_write(tmp_path)).runs.values():
        assert load_config(run.base, run.overrides) == run.config


def test_a_part_of_a_plan_has_what_its_ensembles_need(tmp_path):
    path = _write(tmp_path)
    assert list(read_plan(path, only=["both"]).runs) == ["dense", "third"]
    part = read_plan(path, only=["sparse"])
    assert list(part.runs) == ["sparse"] and not part.ensembles
    with pytest.raises(ConfigError, match="'spars' is not in the plan; did you mean sparse"):
        read_plan(path, only=["spars"])


def test_mistakes_are_said_once_and_not_those_of_runs_that_are_not_asked_for(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_plan(_write(tmp_path), ["data.tokenizer=nowhere.model"])
    assert caught.value.problems == [f"{tmp_path}/plan.toml: data.tokenizer = 'nowhere.model': no such file or folder"]
    text = PLAN.replace("sparsity.density = 1.0", "sparsity.density = 2.0").replace(
        "[runs.third]", "[runs.third]\nsparsity.density = 2.0"
    )
    with pytest.raises(ConfigError) as caught:
        read_plan(_write(tmp_path, text))
    assert caught.value.problems == [f"{tmp_path}/plan.toml: dense, third: sparsity.density = 2.0 must be in (0, 1]"]
    assert list(read_plan(_write(tmp_path, text), only=["sparse"]).runs) == ["sparse"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("base =", "bas =", "bas is no key of a plan; did you mean base"),
        ('dir = "runs/plan"', "", "dir is missing"),
        ('dir = "runs/plan"', "dir = 3", "dir = 3 must be a string"),
        ("[runs.third]", "[runs.data]", "'data' cannot be a name"),
        ("[runs.third]", '[runs."a/b"]', "'a/b' cannot be a name"),
        ("[runs.third]", "[runs.third]\nx = 1", "third: must hold settings"),
        ('both = ["dense", "third"]', 'both = ["dense", "thirt"]', "'thirt' is no run; did you mean third"),
        ('both = ["dense", "third"]', 'both = ["dense"]', "at least two runs"),
        ('both = ["dense", "third"]', 'dense = ["sparse", "third"]', "the name of a run and of an ensemble"),
        ("sparsity.density = 1.0", "sparsity.density = 2.0", r"dense: sparsity.density = 2.0 must be in \(0, 1\]"),
        ("train.steps = 50", "train.stepz = 50", "sparse: train.stepz is no setting; did you mean train.steps"),
        (BASE, "nowhere.toml", "nowhere.toml: no such file"),
        ("[settings]", "[settings", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in PLAN
    with pytest.raises(ConfigError, match=message):
        read_plan(_write(tmp_path, PLAN.replace(old, new)))


SEVERAL = PLAN.replace("[settings]", "seeds = [0, 1]\n[settings]").replace(
    "[runs.third]", "[runs.third]\nseeds = [3]\ntune.train.lr = [0.1, 2e-3]\ntune.trails.layers = [4, 5]"
)


def test_seeds_and_settings_to_try_make_runs_named_by_what_differs(tmp_path):
    models = read_plan(_write(tmp_path, SEVERAL)).models
    assert {what: [run.name for run in runs] for what, runs in models["dense"].tried.items()} == {
        "": ["dense", "dense_seed1"]
    }
    assert {what: [run.name for run in runs] for what, runs in models["third"].tried.items()} == {
        "train.lr = 0.1, trails.layers = 4": ["third_lr0.1_seed3"],
        "train.lr = 0.1, trails.layers = 5": ["third_lr0.1_layers5_seed3"],
        "train.lr = 0.002, trails.layers = 4": ["third_seed3"],
        "train.lr = 0.002, trails.layers = 5": ["third_layers5_seed3"],
    }
    for run in read_plan(_write(tmp_path, SEVERAL)).runs.values():
        assert run.dir == Path("runs/plan") / run.name and load_config(run.base, run.overrides) == run.config
        assert run.config.data.prepared == "runs/plan/data"
    tried = read_plan(_write(tmp_path, SEVERAL)).runs["third_lr0.1_layers5_seed3"].config
    assert (tried.train.lr, tried.trails.layers, tried.train.seed, tried.train.steps) == (0.1, 5, 3, 40)


def test_what_the_command_line_says_is_not_tried(tmp_path):
    models = read_plan(_write(tmp_path, SEVERAL), ["train.lr=0.5", "train.seed=7"]).models
    assert list(models["third"].tried) == ["trails.layers = 4", "trails.layers = 5"]
    assert {run.config.train.lr for run in models["third"].runs} == {0.5}
    assert [run.config.train.seed for run in models["dense"].runs] == [7]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("seeds = [3]", "seeds = 3", "third: seeds = 3 must be a list of integers"),
        ("seeds = [0, 1]", 'seeds = ["a"]', r"seeds = \['a'\] must be a list of integers"),
        ("seeds = [0, 1]", "seeds = [0, -1]", "dense: train.seed = -1 must be"),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.lr = 0.1", "third: tune: must hold lists"),
        ("tune.train.lr = [0.1, 2e-3]", "tune.lr = [0.1]", "third: tune: must hold lists"),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.lr = []", "third: tune: must hold lists"),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.lr = [0.1, -1.0]", "third: train.lr = -1.0 must be"),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.lrr = [0.1]", "train.lrr is no setting"),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.lr = [0.1, 0.1]", None),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.lr = [0.1, 1e-1]", None),
        ("tune.train.lr = [0.1, 2e-3]", "tune.train.seed = [1, 2]", "tune.train.seed: is not tuned"),
        ("[runs.third]", "[runs.dense_seed1]\n[runs.third]", "'dense_seed1' would be two runs or ensembles"),
        ("seeds = [0, 1]", "seeds = [0, 1, 0]", "'dense' would be two runs or ensembles"),
    ],
)
def test_mistakes_in_seeds_and_what_to_try_are_named(tmp_path, old, new, message):
    assert old in SEVERAL
    if message is None:  # said twice is said once
        assert len(read_plan(_write(tmp_path, SEVERAL.replace(old, new))).models["third"].tried) == 2
        return
    with pytest.raises(ConfigError, match=message):
        read_plan(_write(tmp_path, SEVERAL.replace(old, new)))


def test_a_plan_that_is_not_there():
    with pytest.raises(ConfigError, match="nowhere.toml: No such file"):
        read_plan(Path("nowhere.toml"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "baselines").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_plans_have_the_baselines_and_no_setting_that_does_nothing(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(path)
    runs = {name: run.config for name, run in plan.runs.items()}
    assert not any(list(warnings(config)) for config in runs.values())
    single, full, tree = runs["single_dense"], runs["full_ensemble"], runs["tree_net"]
    assert (single.trails.count, single.sparsity.density) == (1, 1)
    assert (full.trails.count, full.trails.fork, full.sparsity.density) == (3, "embedding", 1)
    assert (tree.trails.count, tree.trails.fork, tree.sparsity.density) == (3, "blocks", 1)
    assert {runs[name].sparsity.density for name in ("neurotrails_090", "neurotrails_050")} == {0.9, 0.5}
    assert runs["static_sparse"].sparsity.update_every == 0 and runs["static_sparse"].trails.count == 3
    assert (runs["set"].trails.count, runs["set"].sparsity.drop, runs["set"].sparsity.grow) == (1, "set", "random")
    assert (runs["rigl"].trails.count, runs["rigl"].sparsity.drop, runs["rigl"].sparsity.grow) == (
        1,
        "magnitude",
        "gradient",
    )
    members = [runs[name] for name in plan.ensembles["deep_ensemble"]]
    assert len({config.train.seed for config in members}) == 3
    assert {(config.trails.count, config.sparsity.density) for config in members} == {(1, 1)}
    assert len({(config.train.steps, config.train.batch_size, config.data.path) for config in runs.values()}) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_compared_on_the_same_tokens_and_within_the_weights(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(path)
    runs = {name: run.config for name, run in plan.runs.items()}
    assert not any(list(warnings(config)) for config in runs.values())
    assert len({(config.train.steps, config.train.batch_size, config.data.path) for config in runs.values()}) == 1
    stored = {name: count_parameters(model.runs[0].config)["stored"] for name, model in plan.models.items()}
    assert all(each <= 0.7 * stored["full_ensemble"] for name, each in stored.items() if name.startswith("neurotrails"))


def test_points_of_a_sweep():
    assert parse_points("0.5,0.9", "1,2", "", "") == [
        SweepPoint(0.5, 1),
        SweepPoint(0.9, 1),
        SweepPoint(0.5, 2),
        SweepPoint(0.9, 2),
    ]
    assert parse_points("0.5,0.9", "1,2", "", "0.9:2,0.5:1") == [SweepPoint(0.5, 1), SweepPoint(0.9, 2)]
    with pytest.raises(ConfigError, match="--points 0.8:2"):
        parse_points("0.5,0.9", "1,2", "", "0.8:2")
    with pytest.raises(ConfigError, match="must be numbers"):
        parse_points("0.5,many", "1,2", "", "")
    assert parse_points("0.9", "2", "0,0.5", "0.9:2:0.5") == [SweepPoint(0.9, 2, 0.5)]
    assert parse_points("0.9", "2", "0,0.5", "")[0].name == "density_0.9_layers_2_joint_0"
    with pytest.raises(ConfigError, match="--points 0.9:2: is not"):
        parse_points("0.9", "2", "0,0.5", "0.9:2")
    with pytest.raises(ConfigError, match="must be numbers"):
        parse_points("0.9", "2", "", "0.9:2:1:1")


def test_a_sweep_scales_the_warm_up_with_the_steps(tmp_path):
    points = parse_points("0.5", "2,3", "", "")
    runs = plan_sweep(points, BASE, tmp_path, 60, [])
    assert [(run.config.sparsity.density, run.config.trails.layers) for run in runs.values()] == [(0.5, 2), (0.5, 3)]
    assert {(run.config.train.steps, run.config.train.warmup_steps) for run in runs.values()} == {(60, 6)}
    assert {run.dir for run in runs.values()} == {tmp_path / point.name for point in points}
    (joint,) = plan_sweep([SweepPoint(0.5, 2, 0.25)], BASE, tmp_path, None, []).values()
    assert joint.config.trails.joint == 0.25
    (given,) = plan_sweep(points[:1], BASE, tmp_path, 60, ["train.warmup_steps=9"]).values()
    assert given.config.train.warmup_steps == 9
    with pytest.raises(ConfigError, match="density_0.5_layers_7: trails.layers = 7"):
        plan_sweep(parse_points("0.5", "7", "", ""), BASE, tmp_path, None, [])
    for twice, flag in (("trails.layers=1", "--layers"), ("trails.joint=1", "--joints"), ("train.steps=9", "--steps")):
        with pytest.raises(RunError, match=f"{twice[:-2]} is what {flag} says"):
            plan_sweep([SweepPoint(0.5, 2, 0.25)], BASE, tmp_path, 60, [twice])


def test_runs_are_named_by_their_folders(tmp_path):
    assert name_runs([tmp_path / "a", tmp_path / "b"]) == {"a": [tmp_path / "a"], "b": [tmp_path / "b"]}
    assert list(name_runs([tmp_path / "x" / "run", tmp_path / "y" / "run"])) == ["x_run", "y_run"]
    with pytest.raises(RunError, match="cannot be told apart"):
        name_runs([tmp_path / "a", tmp_path / "a"])
    assert [str(each) for each in parse_together(["deep=a,b"])["deep"]] == ["a", "b"]
    for wrong in (["deep"], ["deep=a"], ["=a,b"], ["deep=a,b", "deep=c,d"]):
        with pytest.raises(RunError, match="--together"):
            parse_together(wrong)
