"""The two commands of this package, each started once as a user starts it."""

import os
import subprocess
import sys

import pytest

from nt_dist.text.prepare import open_data
from tests.unit.text.data_case import config_over, files_under, sentences, write_jsonl

CONFIG = """
[model]
vocab_size = 330
max_seq_len = 16
[data]
source = "jsonl"
num_workers = 0
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "it.toml").write_text(CONFIG)
    write_jsonl(tmp_path / "a.jsonl", [sentences(8, seed) for seed in range(30)])

    def run(tool, *arguments):
        settings = ["--config", "it.toml", "data.path=a.jsonl", "run.dir=run", *arguments]
        command = [sys.executable, os.path.join(os.getcwd(), "tools", tool), *settings]
        environment = os.environ | {"PYTHONPATH": os.getcwd()}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_prepare_data_prepares_what_training_opens(start, tmp_path, monkeypatch):
    done = start("prepare_data.py")
    assert done.returncode == 0, done.stderr
    folder = done.stdout.strip()
    assert "preparing train texts (100%)  30 documents" in done.stderr
    monkeypatch.chdir(tmp_path)
    data = open_data(config_over(tmp_path, path="a.jsonl"))
    assert str(data.train.indexed.bin_path.parent) == str(tmp_path / folder)


def test_bad_input_ends_with_2_and_a_line(start, tmp_path):
    with open(tmp_path / "a.jsonl", "a") as stream:
        stream.write('{"text": 3}\n')
    done = start("prepare_data.py")
    assert done.returncode == 2
    assert "error: a.jsonl, line 31: the field data.text_key = 'text' must be text, not int" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "run").exists() or not files_under(tmp_path / "run")


def test_train_tokenizer_writes_a_model_that_training_takes(start, tmp_path, monkeypatch):
    done = start("train_tokenizer.py", "--out", "it.model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "it.model"
    monkeypatch.chdir(tmp_path)
    assert open_data(config_over(tmp_path, path="a.jsonl", tokenizer="it.model")).tokenizer.vocab_size == 330
