"""A run's folder becomes an ensemble to compute with, and whatever does not belong together is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from nt_dist.errors import CheckpointError, ConfigError, DataError
from nt_dist.inference import load_ensemble
from nt_dist.inference.ensemble import combine, parse_combination, parse_device
from nt_dist.model.trails import build_model, statistics_of, weights_of
from tests.unit.checkpoint.test_fragments import rewrite

from .trained_run import write_pictures_run, write_run

TOKENS = torch.randint(0, 331, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def copy(run, tmp_path):
    """The run's folder as one that a test may damage; its data is where it was."""
    return shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints").parent


def test_logits_are_those_of_the_model_that_was_saved_without_padding(run):
    ensemble = load_ensemble(run)
    model = build_model(ensemble.config)
    for name, weight in weights_of(model).items():
        values = weights_of(ensemble.model)[name].values
        if weight.spec.role != "scale":
            torch.testing.assert_close(weight.dense() * 8.0, values)  # as write_run enlarges what is drawn
        weight.values.data.copy_(values)
    logits = ensemble.logits(TOKENS)
    assert logits.shape == (3, 2, 9, 331) and logits.isfinite().all() and not logits.requires_grad
    torch.testing.assert_close(logits, model(TOKENS)[..., :331].detach())
    assert ensemble.manifest.training_state.step == 4 and ensemble.tokenizer.vocab_size == 331
    low = load_ensemble(run / "checkpoints" / "step-00000004", dtype=torch.bfloat16).logits(TOKENS)
    assert low.dtype == torch.bfloat16 and (low - logits).abs().mean() < 0.1 * logits.std()


def test_where_there_is_an_average_it_is_what_computes(run, tmp_path):
    values = weights_of(load_ensemble(run).model)
    for name, weight in weights_of(load_ensemble(write_run(tmp_path, train={"average_decay": 1.0})).model).items():
        torch.testing.assert_close(weight.values, 2 * values[name].values)  # as write_run has them


def test_a_run_of_pictures_has_their_classes_and_no_tokenizer(tmp_path):
    run = write_pictures_run(tmp_path)
    ensemble = load_ensemble(run)
    assert ensemble.tokenizer is None and ensemble.classes == ["oak", "elm", "fir", "ash", "4"]
    pictures = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = ensemble.logits(pictures)
    assert logits.shape == (3, 2, 1, 5) and not torch.equal(logits[0], logits[1])
    mean = statistics_of(ensemble.model)["classifier.norm.mean"].values
    assert mean.unique().numel() == 3 * 16  # as they were saved
    for given in ({"tokenizer": tmp_path / "some.model"}, {"prepared": tmp_path}):
        with pytest.raises(ConfigError, match=f"--{next(iter(given))} .*: model.family = 'resnet' reads no texts"):
            load_ensemble(run, **given)


def test_a_run_of_pictures_writes_no_text(tmp_path):
    run = write_pictures_run(tmp_path)
    done = subprocess.run([sys.executable, "tools/generate.py", "--checkpoint", run], capture_output=True, text=True)
    rule = "model.family = 'resnet' is for image-classification; this is for text-generation"
    assert (done.returncode, done.stderr) == (2, f"error: {run}/checkpoints/step-00000004: {rule}\n")


def test_combinations_are_log_probabilities():
    logits = torch.randn(3, 2, 5, 7) * 3
    probability = combine(logits, "prob")
    torch.testing.assert_close(probability.exp(), logits.softmax(-1).mean(0))
    torch.testing.assert_close(combine(logits, "logit"), logits.mean(0).log_softmax(-1))
    torch.testing.assert_close(combine(logits.bfloat16(), 2), logits.bfloat16()[1].float().log_softmax(-1))


def test_a_combination_is_read_with_trails_counted_from_one():
    assert [parse_combination(text, 3) for text in ("prob", "logit", "1", "3")] == ["prob", "logit", 1, 3]
    for text in ("0", "4", "mean", "-1"):
        with pytest.raises(ConfigError, match=f"combine = '{text}' must be .* from 1 to 3"):
            parse_combination(text, 3)


def test_a_device_that_is_not_there_is_refused():
    assert parse_device("cpu") == torch.device("cpu")
    for name in ("gpu9", "cuda:77", "meta"):
        with pytest.raises(ConfigError, match=f"--device '{name}' cannot be used: "):
            parse_device(name)


def test_neither_deepspeed_nor_a_process_group_is_needed(run):
    code = (
        "import sys; sys.modules['deepspeed'] = sys.modules['megatron'] = None\n"
        f"from nt_dist.inference import load_ensemble; ensemble = load_ensemble({str(run)!r})\n"
        "import torch; assert not torch.distributed.is_initialized(); print(ensemble.num_trails)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr


def manifest_of(run):
    return run / "checkpoints" / "step-00000004" / "manifest.json"


def test_a_checkpoint_without_a_part_is_refused(copy):
    manifest_of(copy).with_name("state-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is whole"):
        load_ensemble(copy)
    with pytest.raises(CheckpointError, match="state-00000.safetensors: missing"):
        load_ensemble(copy / "checkpoints" / "step-00000004")
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    with pytest.raises(CheckpointError, match="there is no checkpoint in it"):
        load_ensemble(copy)


def test_a_checkpoint_of_another_version_is_refused(copy):
    content = json.loads(manifest_of(copy).read_text()) | {"version": 9}
    manifest_of(copy).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="format version 9; this program reads version 1"):
        load_ensemble(copy)


def test_a_topology_that_does_not_match_its_checksum_is_refused(copy):
    path = manifest_of(copy).parent

    def move(parts):
        free = sorted(set(range(parts["positions"].max() + 1)) - set(parts["positions"].tolist()))
        parts["positions"][:] = sorted([*parts["positions"].tolist()[1:], free[0]])

    rewrite(path, move, with_checksum=False)
    with pytest.raises(CheckpointError, match="topology checksum"):
        load_ensemble(path)


def test_the_tokenizer_is_the_runs_or_none(run, copy, tmp_path):
    other = write_run_with_other_texts(tmp_path)
    with pytest.raises(DataError, match="--tokenizer .*: SHA-256 .* is not that of the run's own"):
        load_ensemble(run, tokenizer=next(other.glob("data/tokenizer-*.model")))
    own = next(run.glob("data/tokenizer-*.model"))
    assert load_ensemble(copy, tokenizer=own).tokenizer.data == own.read_bytes()
    with pytest.raises(DataError, match=r"the run's tokenizer \(SHA-256 .*\) is neither in .*give it with --tokenizer"):
        load_ensemble(copy, prepared=other / "data")


def test_a_checkpoint_that_does_not_name_its_tokenizer_has_it_by_its_data(tmp_path):
    from tests.unit.inference import trained_run

    run = write_run(tmp_path)
    ensemble = load_ensemble(run)
    trained_run.write_checkpoint(ensemble.config, ensemble.manifest.training_state.data_digest, {}, step=5)
    again = load_ensemble(run)
    assert again.manifest.training_state.step == 5 and again.tokenizer.sha256 == ensemble.tokenizer.sha256
    trained_run.write_checkpoint(ensemble.config, "another", {}, step=6)
    with pytest.raises(DataError, match="prepared texts are in none of .* with --prepared"):
        load_ensemble(run)


def write_run_with_other_texts(folder):
    (folder / "other").mkdir()
    return write_run(folder / "other", data={"max_documents": 6})
