"""Bad input ends at once with a message that gives key, value and rule, and leaves nothing half-written.

The cases run in this process through the same door that every command uses; a few go through real commands, to see the
exit code and that no traceback is shown.
"""

import gzip
import json
import sys

import pytest

from nt_dist.errors import ConfigError, DataError
from nt_dist.families import load_config
from nt_dist.text.prepare import prepare_data
from tests.e2e.commands import ROOT, files_in, run_command, write_tiny_run

QUICKSTART = ROOT / "configs" / "quickstart.toml"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The config of a tiny run, its corpus beside it."""
    return write_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    "override, says",
    [
        ("train.batchsize=32", ["train.batchsize", "train.batch_size"]),
        ("trian.steps=3", ["trian.steps", "train.steps"]),
        ("sparsity.denisty=0.5", ["sparsity.denisty", "sparsity.density"]),
        ("train.steps=many", ["train.steps", "'many'", "integer"]),
        ("train.steps=true", ["train.steps", "true", "integer"]),
        ("train.lr=fast", ["train.lr", "'fast'", "number"]),
        ("model.num_layers=3.5", ["model.num_layers", "3.5", "integer"]),
        ("trails.layers=7", ["trails.layers = 7", "model.num_layers = 6"]),
        ("sparsity.density=0", ["sparsity.density = 0", "(0, 1]"]),
        ("sparsity.density=1.5", ["sparsity.density = 1.5", "(0, 1]"]),
        ("sparsity.density=-0.1", ["sparsity.density = -0.1", "(0, 1]"]),
        ("sparsity.density=nan", ["sparsity.density", "nan", "number"]),
        ("sparsity.storage=compct", ["sparsity.storage = 'compct'", "compact"]),
        ("train.batch_size=36", ["train.batch_size = 36", "train.micro_batch_size", "32", "48"]),
        ("model.ffn_size=350", ["sparsity.topology_shards = 8", "model.ffn_size = 350", "352"]),
        ("model.num_attention_heads=3", ["model.num_attention_heads = 3", "model.hidden_size = 128"]),
        ("data.tokenizer=nowhere.model", ["data.tokenizer", "'nowhere.model'", "no such file"]),
        ("run.resume_from=nowhere", ["run.resume_from", "'nowhere'", "no such file"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_rule(override, says):
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [override])
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(
    "ds_config, says",
    [
        ({"zero_optimisation": {"stage": 1}}, ["zero_optimisation", "zero_optimization"]),
        ({"zero_optimization": {"stag": 1}}, ["zero_optimization.stag", "zero_optimization.stage"]),
        ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage = 4", "0, 1, 2 or 3"]),
        ({"zero_optimization": {"stage": "one"}}, ["zero_optimization.stage", "'one'"]),
        ({"train_batch_size": 64}, ["train_batch_size = 64", "train.batch_size = 32"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping = 0.5", "train.grad_clip = 1.0"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled", "train.precision = 'fp32'"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ["offload_optimizer", "refused"]),
        ({"tensorboard": {"enabled": True}}, ["tensorboard", "refused"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_deepspeed_json_is_named(ds_config, says):
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, ds_config=ds_config)
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_zero_0_in_bf16_names_both_sides():
    with pytest.raises(ConfigError, match=r"stage = 0 of the DeepSpeed JSON contradicts train.precision = 'bf16'"):
        load_config(QUICKSTART, ["train.precision=bf16"], ds_config={"zero_optimization": {"stage": 0}})


def _write_empty(folder):
    (folder / "bad.jsonl").write_text("")
    return "bad.jsonl", "empty"


def _write_binary(folder):
    (folder / "bad.jsonl").write_bytes(bytes(range(256)) * 20)
    return "bad.jsonl", "bad.jsonl"


def _write_truncated(folder):
    whole = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "bad.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    return "bad.jsonl.gz", "truncated"


def _write_half_a_line(folder):
    text = (folder / "corpus.jsonl").read_text()
    (folder / "bad.jsonl").write_text(text[: len(text) // 2])
    return "bad.jsonl", "is not JSON"


def _write_other_field(folder):
    (folder / "bad.jsonl").write_text(json.dumps({"body": "a text"}) + "\n")
    return "bad.jsonl", "data.text_key = 'text'"


@pytest.mark.parametrize(
    "write", [_write_empty, _write_binary, _write_truncated, _write_half_a_line, _write_other_field]
)
def test_a_data_file_that_cannot_be_used_is_named(write, tmp_path):
    config_path = write_tiny_run(tmp_path)
    name, says = write(tmp_path)
    config = load_config(config_path, [f"data.path={tmp_path / name}"])
    with pytest.raises(DataError) as caught:
        prepare_data(config)
    assert name in str(caught.value) and says in str(caught.value), str(caught.value)
    assert _prepared(tmp_path) == set()


def test_a_missing_data_file_is_named(tiny):
    with pytest.raises(ConfigError, match=r"data.path = .*nothing.jsonl.*: no such file"):
        load_config(tiny, ["data.path=nothing.jsonl"])


def test_a_tokenizer_of_another_size_is_named(tiny):
    folder = tiny.parent
    prepare_data(load_config(tiny))
    (tokenizer,) = folder.glob("prepared/*.model")
    before = _prepared(folder)
    config = load_config(tiny, [f"data.tokenizer={tokenizer}", "model.vocab_size=400"])
    with pytest.raises(DataError, match=r"data.tokenizer = .* has 300 pieces, model.vocab_size = 400"):
        prepare_data(config)
    assert _prepared(folder) == before


def _prepared(folder):
    """Files that stand under their final name, or on the way there."""
    return {name for name in files_in(folder / "prepared") if not name.endswith("lock")}


def test_a_command_reports_all_problems_together_and_leaves_nothing(tmp_path):
    done = run_command(
        *(sys.executable, "train.py", f"run.dir={tmp_path}/run"),
        *("train.stesp=3", "sparsity.density=2", "trails.layers=9", "data.source=text", "data.path=nowhere.txt"),
    )
    assert done.returncode == 2
    says = ["train.steps", "sparsity.density = 2", "trails.layers = 9", "'nowhere.txt'"]
    lines = done.stderr.splitlines()
    assert all(any(part in line for line in lines) for part in says), done.stderr
    assert all(line.startswith("error: ") for line in lines)
    assert done.stdout == "" and files_in(tmp_path) == set()


def test_both_ranks_of_a_launcher_end_at_once(tiny, tmp_path):
    """A data file that only the first rank reads; the other one is not left waiting for it."""
    (tmp_path / "binary.jsonl").write_bytes(bytes(4096))
    done = run_command(
        *("deepspeed", "--num_gpus", "2", "--master_port", "29631", "train.py", "--config", tiny),
        *(f"data.path={tmp_path}/binary.jsonl", f"data.prepared={tmp_path}/prepared", f"run.dir={tmp_path}/run"),
    )
    assert done.returncode == 2
    output = done.stdout + done.stderr
    assert output.count("error: ") == 1 and "binary.jsonl" in output and "Traceback" not in output, output
    assert _prepared(tmp_path) == set() and not list(tmp_path.glob("run/checkpoints/*"))


def test_a_checkpoint_of_another_model_is_refused_and_kept(tiny):
    first = run_command(sys.executable, "train.py", "--config", tiny)
    assert first.returncode == 0, first.stdout + first.stderr
    checkpoints = tiny.parent / "run" / "checkpoints"
    before = {name: (checkpoints / name).read_bytes() for name in files_in(checkpoints)}
    assert before
    again = run_command(sys.executable, "train.py", "--config", tiny, "model.ffn_size=64", "train.steps=8")
    assert again.returncode == 2 and "Traceback" not in again.stderr, again.stderr
    assert "model.ffn_size" in again.stderr and "32" in again.stderr and "64" in again.stderr, again.stderr
    assert before == {name: (checkpoints / name).read_bytes() for name in files_in(checkpoints)}
