"""Reading: the command line, the file, overrides, and all problems together."""

import json

import pytest

from nt_dist.config import parse_command_line
from nt_dist.config.load import with_absolute_paths
from nt_dist.errors import ConfigError
from nt_dist.families import load_config, make_config


def write(folder, text, name="run.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path, *arguments, **options):
    with pytest.raises(ConfigError) as caught:
        load_config(path, *arguments, **options)
    return caught.value.problems


def test_command_line():
    assert parse_command_line([]) == ("configs/quickstart.toml", None, [])
    words = ["--local_rank=1", "--config", "a.toml", "train.lr=1", "--ds_config=b.json", "run.dir=x=y"]
    assert parse_command_line(words) == ("a.toml", "b.json", ["train.lr=1", "run.dir=x=y"])
    assert parse_command_line(["--local_rank", "0", "--ds-config", "b"])[1] == "b"


def test_command_line_problems_come_together():
    with pytest.raises(ConfigError) as caught:
        parse_command_line(["--confg", "run", "--ds_config", "--local_rank=0", "-x"])
    assert caught.value.problems == [
        "--confg is no option; did you mean --config?",
        "'run' is neither an option nor section.key=value",
        "--ds_config needs a value",
        "-x is no option",
    ]


def test_the_command_line_wins_and_the_last_word_too(tmp_path):
    path = write(tmp_path, "[train]\nsteps = 7\nwarmup_steps = 1\nlr = 1\n")
    config = load_config(path, ["train.lr=0.5", "train.steps=9", "train.steps=11"])
    assert (config.train.steps, config.train.lr, config.train.warmup_steps) == (11, 0.5, 1)
    assert config.model == make_config({}).model


def test_all_problems_are_reported_together(tmp_path):
    toml = """
lr = 1
[model]
hiden_size = 64
num_layers = true
[trian]
[trails]
layers = 9
[sparsity]
density = 1.5
drop = "magnitud"
[data]
source = "text"
path = "no/such/*.txt"
[train]
batch_size = 30
"""
    ds = write(tmp_path, '{"zero_optimization": {"stge": 1}}', "ds.json")
    found = problems_of(write(tmp_path, toml), ["run.dri=x", "train.lr=fast", "lr=2"], ds)
    assert found == [
        "run.dri is no setting; did you mean run.dir?",
        "train.lr = 'fast' must be a number",
        "lr is no setting; did you mean train.lr?",
        "lr stands outside a section; did you mean train.lr?",
        "model.hiden_size is no setting; did you mean model.hidden_size?",
        "model.num_layers = True must be an integer",
        "[trian] is no section; did you mean train?; sections are model, trails, sparsity, data, train, parallel, run",
        "sparsity.density = 1.5 must be in (0, 1]",
        "sparsity.drop = 'magnitud' must be one of soft_magnitude, magnitude, set; did you mean magnitude?",
        "train.batch_size = 30 must be a multiple of train.micro_batch_size × data degree = 16 × 1; "
        "nearest: 16 or 32; or train.micro_batch_size = 15 or 30",
        "zero_optimization.stge is no setting of DeepSpeed's; did you mean zero_optimization.stage? (DeepSpeed JSON)",
        "data.path = 'no/such/*.txt': no such file or folder",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model\n", "is not TOML"),
        ("x = " + "[" * 3000, "is not TOML"),
        ("a." * 100_000 + "a = 1", "a key of a hundred parts or more"),  # which took tomllib seconds
        ("x = {" + '"a b" . ' * 200 + "a = 1}", "a key of a hundred parts or more"),
        ("#" * (1 << 20) + "\n", "has more than 1,048,576 characters"),
        ("[model]\nvocab_size = 2\nvocab_size = 3", "is not TOML"),
        ("model = 3", "model = 3 must be a section"),
        ("[run]\ndir = 3", "run.dir = 3 must be a string"),
        ("[train]\nlr = nan", "train.lr = nan must be a number"),
        ("[train]\nbetas = [0.9]", "must be a list of 2 numbers"),
        ("[train]\nbetas = [0.9, 1.0]", "must be two numbers in [0, 1)"),
        ("[data]\nvalidation = 1.0", "data.validation = 1.0 must be a path, or a share"),
        ("[data]\npath = [1]", "data.path = [1] must be a string or a list of strings"),
        ("[sparsity]\ndensity = 0", "sparsity.density = 0 must be in (0, 1]"),
        ("[sparsity]\ndensity = -0.1", "sparsity.density = -0.1 must be in (0, 1]"),
    ],
)
def test_one_problem_each(tmp_path, text, message):
    (found,) = problems_of(write(tmp_path, text))
    assert message in found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.phase_timeout=1e12", "run.phase_timeout = 1000000000000.0 must be in (0, 10^8]"),
        ("run.stall_timeout=1e10", "run.stall_timeout = 10000000000.0 must be in [0, 10^8]"),
        ("run.keep=1000000000000000000000", "run.keep = '1000000000000000000000' must be an integer"),
        ("data.max_documents=10000000000000000000", "data.max_documents = '10000000000000000000' must be an integer"),
        ("data.prepared=~nosuchuser/x", "data.prepared = '~nosuchuser/x': there is no such user"),
    ],
)
def test_what_no_clock_counter_or_system_has_is_refused(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config({}, [override])
    assert caught.value.problems == [message]


@pytest.mark.parametrize(("steps", "shown"), [("0x" + "f" * 5000, "…"), ("9" * 4000, "9" * 500 + "…")])
def test_a_number_of_thousands_of_digits_is_refused_in_a_short_message(tmp_path, steps, shown):
    (tmp_path / "a.toml").write_text(f"[train]\nsteps = {steps}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "a.toml")
    assert caught.value.problems == [f"train.steps = {shown} must be an integer below 2^63"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "no such file" in problems_of(tmp_path / "none.toml")[0]
    assert "is not a text file" in problems_of(tmp_path / "binary.toml")[0]
    assert "directory" in problems_of(tmp_path)[0]
    good = write(tmp_path, "")
    assert "no such file" in problems_of(good, (), tmp_path / "none.json")[0]
    for text in ("{", "[" * 100_000, ""):
        assert "is not JSON" in problems_of(good, (), write(tmp_path, text, "ds.json"))[0]
    assert "must be an object" in problems_of(good, (), write(tmp_path, "[]", "ds.json"))[0]
    twice = write(tmp_path, '{"steps_per_print": 1, "steps_per_print": 2}', "ds.json")
    assert "steps_per_print stands there twice" in problems_of(good, (), twice)[0]


def test_the_deepspeed_json_is_read(tmp_path):
    ds = write(tmp_path, json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}), "ds.json")
    config = load_config(write(tmp_path, ""), (), ds)
    assert config.zero_stage == 2
    assert config.deepspeed["train_batch_size"] == config.train.batch_size


def test_missing_paths_are_named(tmp_path):
    path = write(tmp_path, "")
    here = write(tmp_path, "text", "here.txt")
    toml = f"""
[data]
source = "text"
path = ["{here}", "{tmp_path}/*.md", "{tmp_path}/h*.txt"]
validation = "{tmp_path}/validation.txt"
tokenizer = "{tmp_path}/none.model"
[run]
resume_from = "{tmp_path}/step-1"
"""
    path = write(tmp_path, toml)
    found = problems_of(path)
    assert [message.split(" = ")[0] for message in found] == [
        "data.path",
        "data.validation",
        "data.tokenizer",
        "run.resume_from",
    ]
    assert f"{tmp_path}/*.md" in found[0]
    assert load_config(path, check_paths=False).data.tokenizer == f"{tmp_path}/none.model"
    assert "data.validation" in problems_of(path, ["data.source=stdlib", "data.tokenizer=auto", "run.resume_from="])[0]
    hub = ["data.source=hf", "data.path=allenai/c4", "data.validation=validation", "data.tokenizer=auto"]
    assert load_config(path, [*hub, "run.resume_from="]).data.validation == "validation"


def test_a_tilde_in_the_runs_paths_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "start").mkdir()
    config = load_config({}, ["run.dir=~/runs/a", "run.resume_from=~/start"])
    assert (config.run.dir, config.run.resume_from) == (f"{tmp_path}/runs/a", f"{tmp_path}/start")
    assert problems_of({}, ["run.dir=~nosuchuser/a"]) == ["run.dir = '~nosuchuser/a': there is no such user"]


def test_paths_of_data_become_absolute_and_names_do_not(tmp_path, monkeypatch):
    """So that a run's own config can be used from anywhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all" / "train" / "oak").mkdir(parents=True)
    (tmp_path / "all" / "val").mkdir()
    cases = (
        ({"source": "text", "path": ["a", "/b/*"], "prepared": "c"}, {"path": (f"{tmp_path}/a", "/b/*")}),
        ({"source": "text", "path": "a", "prepared": "c"}, {"prepared": f"{tmp_path}/c", "validation": 0.02}),
        ({"source": "text", "path": "a", "validation": "v", "tokenizer": "t"}, {"validation": f"{tmp_path}/v"}),
        ({"source": "hf", "path": "allenai/c4", "validation": "train"}, {"path": "allenai/c4", "validation": "train"}),
        ({"tokenizer": "auto"}, {"tokenizer": "auto", "path": "", "prepared": ""}),
        ({"source": "folder", "path": "all", "validation": "val"}, {"path": f"{tmp_path}/all", "validation": "val"}),
    )
    for given, expected in cases:
        family = {"family": "resnet", "norm_batch": 16} if given.get("source") == "folder" else {}
        data = with_absolute_paths(make_config({"model": family, "data": given})).data
        assert {key: getattr(data, key) for key in expected} == expected
