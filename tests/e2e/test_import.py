"""A dense LLaMA becomes a run, by the two commands that a user types."""

import sys

from transformers import LlamaConfig, LlamaForCausalLM

from tests.e2e.commands import run_command, write_tiny_run


def test_train_continues_what_was_imported(tmp_path):
    config, model = write_tiny_run(tmp_path), tmp_path / "llama"
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    settings = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=False)
    LlamaForCausalLM(settings).save_pretrained(model)
    command = (sys.executable, "tools/import_hf.py", "--model", model, "--config", config)
    wrong = run_command(*command, "model.ffn_size=64", "run.dir=" + str(tmp_path / "other"))
    assert wrong.returncode == 2 and not (tmp_path / "other").exists(), wrong.stderr
    assert wrong.stderr == "error: model.ffn_size = 64 must be 32, the intermediate_size of the imported model\n"
    done = run_command(*command, "--noise", "0.1")
    assert done.returncode == 0, done.stderr
    assert "step-00000000: " in done.stdout and "non-zero weights kept" in done.stdout
    trained = run_command(sys.executable, "train.py", "--config", config)
    assert trained.returncode == 0, trained.stderr
    assert "step 0 of 4" in trained.stdout + trained.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()
