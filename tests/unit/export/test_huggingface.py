"""An export is what the checkpoint is, whole or not there, and anybody's to load."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from nt_dist.errors import ConfigError, RunError
from nt_dist.export import huggingface
from nt_dist.export.huggingface import export, to_transformers
from nt_dist.inference import load_ensemble
from nt_dist.inference.ensemble import combine
from nt_dist.inference.generate import Sampling, generate
from tests.unit.inference.trained_run import write_run

ROOT = Path(__file__).resolve().parents[3]
TOKENS = torch.randint(0, 331, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("trained"), model={"max_seq_len": 32})
    figures = {"ppl_trails": [30.0, 31.0, 32.5], "ppl_ensemble_prob": 28.125, "ppl_ensemble_logit": 28.5}
    records = [{"step": 2, "eval": {}}, {"step": 4, "eval": {**figures, "tokens": 1234}}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "ensemble"
    assert export(load_ensemble(run), out).difference < 1e-4
    return out


def test_what_is_written(folder, run):
    assert {file.name for file in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md"),
        *("modeling_neurotrails.py", "sparse_neurotrails.py"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenization_tokenizers.py"),
    }
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {folder.stat().st_mode & 0o666}
    state = load_file(folder / "model.safetensors")
    assert state["embed_tokens.0.weight"].shape == state["trails.2.lm_head.weight"].shape == (331, 32)  # no padding
    assert {name.split(".")[0] for name in state} == {"embed_tokens", "trunk", "trails"}
    card = (folder / "README.md").read_text()
    assert "| mean of probabilities | 28.12 |" in card and "| trail 3 | 32.50 |" in card and "1,234" in card
    assert "for 4 of 1,000 steps" in card and card.startswith("---\n")


def test_transformers_loads_it_where_nothing_of_ours_can_be_imported(folder, run, tmp_path):
    script = ROOT / "tests" / "e2e" / "load_exported.py"
    arguments = [folder, json.dumps(TOKENS.tolist()), tmp_path / "answer.pt"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, *map(str, [script, *arguments])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, answer = json.loads(done.stdout), torch.load(tmp_path / "answer.pt", weights_only=True)
    ensemble = load_ensemble(run)
    logits = ensemble.logits(TOKENS)
    torch.testing.assert_close(answer["trails"], logits, rtol=1e-4, atol=1e-4)
    expected = combine(logits)
    torch.testing.assert_close(answer["logits"], expected, rtol=1e-4, atol=1e-4)
    nll = -expected[:, :-1].gather(-1, TOKENS[:, 1:, None]).mean()
    torch.testing.assert_close(answer["loss"], nll, rtol=1e-4, atol=1e-4)
    assert said["type"] == "neurotrails"
    prompt = [ensemble.tokenizer.bos, *ensemble.tokenizer.encode("The old")]
    assert said["beams 1"][: len(prompt)] == prompt and len(said["beams 1"]) == len(prompt) + 9
    written = "".join(piece.text for piece in generate(ensemble, "The old", 9, Sampling(temperature=0)))
    assert ensemble.tokenizer.decode(said["beams 1"][1:]) == "The old" + written


def test_padding_at_the_left_changes_nothing(run):
    ensemble = load_ensemble(run)
    model = to_transformers(ensemble.model, ensemble.config)
    padded = torch.cat([torch.full((2, 3), 2), TOKENS], 1)
    mask = (torch.arange(15) >= 3).long().expand(2, -1)
    with torch.no_grad():
        expected = model(TOKENS, combine="logit").logits
        answer = model(padded[:, :-2], attention_mask=mask[:, :-2], combine="logit")
        found = [answer.logits[:, 3:]]
        for at in (13, 14):
            step = model(padded[:, at : at + 1], mask[:, : at + 1], cache=answer.cache, combine="logit")
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-4)


def test_combinations_and_places_are_chosen(run):
    ensemble = load_ensemble(run)
    model, logits = to_transformers(ensemble.model, ensemble.config), ensemble.logits(TOKENS)
    with torch.no_grad():
        for number in (1, 3):
            found = model(TOKENS, combine=number).logits
            torch.testing.assert_close(found, logits[number - 1], rtol=1e-4, atol=1e-4)
        model.config.combine = "logit"
        torch.testing.assert_close(model(TOKENS, logits_to_keep=2).logits, logits.mean(0)[:, -2:], rtol=1e-4, atol=1e-4)
        for wrong in (0, 4):
            rule = f"combine = {wrong} must be 'prob', 'logit' or a trail's number from 1 to 3"
            with pytest.raises(ValueError, match=rule):
                model(TOKENS, combine=wrong)


@pytest.mark.parametrize("trails", [{"fork": "embedding"}, {"final_norm_twice": True}, {"layers": 3}])
def test_every_kind_of_ensemble_is_exported(tmp_path, trails):
    ensemble = load_ensemble(write_run(tmp_path, trails=trails))
    export(ensemble, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["fork_at_embedding"] == (trails.get("fork") == "embedding")
    assert settings["final_norm_twice"] == trails.get("final_norm_twice", False)


def test_a_trail_is_a_plain_llama(tmp_path):
    ensemble = load_ensemble(write_run(tmp_path, model={"rope_theta": 500000.0}))
    export(ensemble, tmp_path / "trail", trail=2)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "trail", local_files_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, ensemble.logits(TOKENS)[1], rtol=1e-4, atol=1e-4)
    settings = json.loads((tmp_path / "trail" / "config.json").read_text())
    assert settings["rope_theta"] == settings["rope_parameters"]["rope_theta"] == 500000.0  # of transformers 4 and 5
    assert settings["model_type"] == "llama" and settings["vocab_size"] == 331 and settings["num_hidden_layers"] == 3
    assert [file.name for file in (tmp_path / "trail").glob("*.py")] == ["tokenization_tokenizers.py"]  # not needed
    card = (tmp_path / "trail" / "README.md").read_text()
    assert card.count("trust_remote_code") == 1 and "`trust_remote_code=True` saves it again" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "trail", local_files_only=True).encode("The")[0] == 1


def test_bf16_halves_the_file_and_is_compared_with_rounded_weights(run, folder, tmp_path):
    done = export(load_ensemble(run), tmp_path / "low", dtype="bfloat16")
    assert done.difference < 1e-4
    sizes = [(each / "model.safetensors").stat().st_size for each in (folder, tmp_path / "low")]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)


def test_what_cannot_be_a_llama_is_refused_by_name(tmp_path):
    ensemble = load_ensemble(write_run(tmp_path, trails={"final_norm_twice": True}))
    with pytest.raises(ConfigError) as caught:
        export(ensemble, tmp_path / "out", trail=4)
    assert "trails.final_norm_twice = true" in str(caught.value)
    assert "--trail 4 must be from 1 to trails.count = 3" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "note").write_text("mine")
    for out, rule in ((tmp_path, "is not empty"), (tmp_path / "note", "must be a folder")):
        with pytest.raises(RunError, match=f"--out .*{rule}"):
            export(load_ensemble(run), out)
    assert [file.name for file in tmp_path.iterdir()] == ["note"] and (tmp_path / "note").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export(load_ensemble(run), tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_other_logits_than_the_checkpoints_leave_nothing(run, tmp_path, monkeypatch):
    filled = huggingface._filled

    def wrong(model, state):
        state["trunk.0.self_attn.q_proj.weight"] = state["trunk.0.self_attn.k_proj.weight"].repeat(2, 1)
        return filled(model, state)

    monkeypatch.setattr(huggingface, "_filled", wrong)
    with pytest.raises(RunError, match="the model's logits differ by .* nothing was exported"):
        export(load_ensemble(run), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(run, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="--out .*cannot be written: No space left on device"):
        export(load_ensemble(run), tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # which safetensors' own code meets
    try:
        with pytest.raises(RunError, match="--out .*cannot be written: .*File too large"):
            export(load_ensemble(run), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
