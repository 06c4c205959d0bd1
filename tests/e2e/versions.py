"""Tries exports with other versions of transformers, each in an environment of its own; pip must reach an index.

    python tests/e2e/versions.py [VERSION …]

By default they are the oldest that is claimed, 5.0.0, where much changed, and what is installed. A tiny ensemble and
one of its trails, both with a base of the rotary embedding that is nobody's default, are exported; each version loads
them in a process that can import nothing of ours (load_exported.py), and has to give the checkpoint's logits. Then
PEFT and ONNX are tried with what is installed (with_clients.py).
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
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
    """Export once, and load with each version."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_run(folder, model={"max_seq_len": 32, "rope_theta": 500000.0})
        logits = load_ensemble(run).logits(TOKENS)
        expected = {"ensemble": combine(logits), "trail": logits[1]}
        for kind, trail in (("ensemble", None), ("trail", 1)):
            export(load_ensemble(run), folder / kind, trail)
        for version in versions:
            own = [] if version == transformers.__version__ else [f"transformers=={version}"]
            python = environment(folder / version, *own)
            for kind, wanted in expected.items():
                difference = float((answer(python, folder / kind) - wanted).abs().max())
                print(f"transformers {version}: {kind}: the largest difference of a logit is {difference:.2g}")
                assert difference < 1e-3
        python = environment(folder / "clients", "--no-deps", *CLIENTS)
        arguments = [python, HERE / "with_clients.py", folder / "ensemble", folder / "trail"]
        subprocess.run([*map(str, arguments)], env=alone(folder), cwd=folder, check=True)
    print(f"{len(versions)} versions passed, 0 failed")


def environment(folder: Path, *packages: str) -> Path:
    """Make an environment with what pip is told to install, and everything else as here; return its Python."""
    if not packages:
        return Path(sys.executable)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    (there,) = folder.glob("lib/python*/site-packages")
    (there / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind its own
    return python


def answer(python: Path, folder: Path) -> torch.Tensor:
    """Load an export with another Python; return its logits for TOKENS."""
    said = folder.parent / "answer.pt"
    arguments = [python, HERE / "load_exported.py", folder, json.dumps(TOKENS.tolist()), said]
    subprocess.run([*map(str, arguments)], env=alone(folder.parent), cwd=folder.parent, check=True)
    return torch.load(said, weights_only=True)["logits"]


def alone(folder: Path) -> dict[str, str]:
    """Variables for a process that finds nothing of ours, and no network."""
    return {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}


if __name__ == "__main__":
    main(sys.argv[1:] or ["4.57.6", "5.0.0", transformers.__version__])
