"""Tries exports with other versions of transformers, each in a folder of its own; pip must reach an index.

    python tests/e2e/versions.py [VERSION …]

By default they are the oldest that is claimed, 5.0.0, where much changed, and what is installed. A tiny ensemble and
one of its trails, both with a base of the rotary embedding that is nobody's default, are exported; each version loads
them in a process that can import nothing of ours (load_exported.py), and has to give the checkpoint's logits. Then
PEFT and ONNX are tried with what is installed (with_clients.py), unless versions are named.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from nt_dist.export.huggingface import export
from nt_dist.inference import load_ensemble
from nt_dist.inference.ensemble import combine
from tests.unit.inference.trained_run import write_run

CLIENTS = ("peft", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "ml_dtypes", "flatbuffers")
HERE = Path(__file__).resolve().parent
TOKENS = torch.randint(0, 331, (2, 12), generator=torch.Generator().manual_seed(1))


def main(versions: list[str]) -> None:
    """Export once, and load with each version, by default those that are claimed."""
    asked, versions = versions, versions or ["4.57.6", "5.0.0", transformers.__version__]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = write_run(folder, model={"max_seq_len": 32, "rope_theta": 500000.0})
        logits = load_ensemble(trained).logits(TOKENS)
        expected = {"ensemble": combine(logits), "trail": logits[1]}
        for kind, trail in (("ensemble", None), ("trail", 2)):
            export(load_ensemble(trained), folder / kind, trail)
        for version in versions:
            own = [] if version == transformers.__version__ else [f"transformers=={version}"]
            packages = install(folder / version, *own)
            for kind, wanted in expected.items():
                difference = float((answer(packages, folder / kind) - wanted).abs().max())
                print(f"transformers {version}: {kind}: the largest difference of a logit is {difference:.2g}")
                assert difference < 1e-3
        if asked:
            return
        packages = install(folder / "clients", "--no-deps", *CLIENTS)
        run(packages, folder, "with_clients.py", folder / "ensemble", folder / "trail")


def install(folder: Path, *packages: str) -> Path:
    """Install what pip is told, where it comes before everything that is here; return the folder."""
    if packages:
        where = ["--quiet", "--no-compile", "--target", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "install", *where, *packages], check=True)
    return folder


def answer(packages: Path, folder: Path) -> torch.Tensor:
    """Load an export with such packages; return its logits for TOKENS."""
    said = folder.parent / "answer.pt"
    run(packages, folder.parent, "load_exported.py", folder, json.dumps(TOKENS.tolist()), said)
    return torch.load(said, weights_only=True)["logits"]


def run(packages: Path, folder: Path, script: str, *arguments: Path | str) -> None:
    """Run a script that has no network, with a home of its own in ``folder``."""
    settings = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(packages)}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    subprocess.run(command, env={**os.environ, **settings}, cwd=folder, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
