"""What the end-to-end tests share: a tiny run on a small corpus, and commands run as a user runs them."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = """
[model]
hidden_size = 16
ffn_size = 32
num_layers = 2
num_attention_heads = 2
vocab_size = 300
max_seq_len = 16

[trails]
count = 2
layers = 1

[sparsity]
density = 0.5
update_every = 2

[data]
source = "jsonl"
path = "{folder}/corpus.jsonl"
validation = 0.1
prepared = "{folder}/prepared"
num_workers = 0

[train]
recipe = "paper"
steps = 4
batch_size = 4
micro_batch_size = 2
warmup_steps = 1

[run]
dir = "{folder}/run"
log_every = 2
eval_batches = 1
"""
TEXT = "the trail a trunk of oak and leaf forks in light rain while roots hold slow old earth under green moss"


def write_tiny_run(folder: Path) -> Path:
    """Write a corpus and the config of a tiny run into a folder; returns the config's path."""
    chance = random.Random(3)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for _ in range(80):
            text = " ".join(chance.choices(TEXT.split(), k=chance.randint(20, 60)))
            corpus.write(json.dumps({"text": text}) + "\n")
    config = folder / "tiny.toml"
    config.write_text(TINY.format(folder=folder))
    return config


def run_command(
    *command: str | Path, timeout: float = 120.0, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess:
    """Run a command of this checkout on the CPU with this interpreter's environment; output and errors are kept."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        **variables,
    }
    return subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def files_in(folder: Path) -> set[str]:
    """All files under a folder, by their path in it; none if it is not there."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
