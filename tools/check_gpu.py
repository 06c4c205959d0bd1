"""Meets a GPU: parity with the CPU, exact resumes, memory beside the plan, speed, MFU, kernels, decoding.

    python tools/check_gpu.py [--json check_gpu.json] [--only parity,speed] [--tiny]

Each check is a process of its own, of at most four minutes, so that one that fails or runs out of memory leaves the
others alone. Where there is no GPU it says so and runs on the CPU, which with --tiny (small models, few steps) takes
two minutes and tests the checks themselves. Nothing is downloaded or written, but for --json and a temporary folder.

Exit code 0: all checks hold. 1: one does not, with what it found.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.files import check_file, write_whole

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 240  # that a check may take
CHECKS = ("parity", "resume", "llama_130m", "llama_350m", "profile", "decoding")
LIMITS = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
"""How far losses may be from those of the CPU in fp32, as a share of them."""
CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
RESUME = [
    "train.steps=100",
    "run.eval_every=0",
    "sparsity.update_every=3",
    "model.hidden_size=64",
    "model.ffn_size=128",
]
RESUME += ["model.vocab_size=512", "data.max_documents=100", "train.batch_size=4", "train.micro_batch_size=4"]


def main() -> int:
    """Parse the command line, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--only", default=",".join(CHECKS), help="some of " + ", ".join(CHECKS))
    parser.add_argument("--tiny", action="store_true", help="small models: tests the checks, measures nothing")
    arguments = parser.parse_args()
    asked = arguments.only.split(",")
    if unknown := [each for each in asked if each not in CHECKS]:
        parser.error(f"--only {unknown[0]!r}: must be some of {', '.join(CHECKS)}")
    if arguments.json:
        check_file("--json", arguments.json)
    machine = describe_machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), "", sep="\n")
    figures, failed = {"machine": machine, "tiny": arguments.tiny}, []
    for name in asked:
        start = time.perf_counter()
        try:
            figures[name] = found = run_check(name, arguments.tiny)
            problems = problems_of(name, found)
        except CheckError as error:
            found, problems = {}, [str(error)]
        failed += [name] * bool(problems)
        print(f"## {name}: {'FAILED' if problems else 'holds'} ({time.perf_counter() - start:.0f} s)")
        print("\n".join([*table(name, found), *problems]), "", sep="\n", flush=True)
    if arguments.json:
        write_whole(arguments.json, json.dumps(figures, indent=2) + "\n")
    print(f"failed: {', '.join(failed)}" if failed else "all checks hold")
    return bool(failed)


class CheckError(Exception):
    """A check did not come to its end."""


def describe_machine() -> dict[str, str]:
    """What is here, and what is missing."""
    import torch

    found = {"torch": torch.__version__, "GPU": "none: the checks run on the CPU"}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["GPU"] = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {memory:.0f} GiB"
        found["CUDA, NCCL"] = f"{torch.version.cuda}, {'.'.join(map(str, torch.cuda.nccl.version()))}"
    return found


def run_check(name: str, tiny: bool) -> dict:
    """Run one check in a process of its own.

    Raises:
        CheckError: It failed, with the end of its output, or took too long.
    """
    if name == "resume":
        with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder:
            command = ["tools/check_resume.py", "--config", "configs/quickstart.toml", "--steps", "5", "--folder"]
            said = _run([*command, f"{folder}/runs", *RESUME], {})
        return {"said": said.strip().splitlines()[-5:]}
    command = ["-m", "benchmarks.gpu", name, *["--tiny"] * tiny]
    found = json.loads(_run(command, {}).splitlines()[-1])
    return {"cpu": json.loads(_run(command, CPU).splitlines()[-1]), "here": found} if name == "parity" else found


def _run(command: list[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise CheckError(f"took longer than {SECONDS} s") from None
    if done.returncode:
        raise CheckError("\n".join((done.stdout + done.stderr).strip().splitlines()[-15:]))
    return done.stdout


def problems_of(name: str, found: dict) -> list[str]:
    """What does not hold of the figures of a check."""
    if name != "parity":
        return []
    problems = []
    for case, difference in differences(found).items():
        if difference > LIMITS[case[:4]]:
            problems.append(f"{case}: losses differ by {difference:.2g} of the CPU's; at most {LIMITS[case[:4]]:g}")
        if found["here"][case]["start"] != found["cpu"][REFERENCE]["start"]:
            problems.append(f"{case}: the first topology is not the CPU's")
    return problems


REFERENCE = "fp32, ZeRO 0"


def differences(found: dict) -> dict[str, float]:
    """The largest relative difference of a case's losses from the CPU's in fp32; infinite where one is no number."""
    right = found["cpu"][REFERENCE]["losses"]
    found = {
        case: [abs(loss - other) / other for loss, other in zip(each["losses"], right, strict=True)]
        for case, each in found["here"].items()
    }
    return {case: max(each) if all(map(math.isfinite, each)) else math.inf for case, each in found.items()}


def table(name: str, found: dict) -> list[str]:
    """The figures of a check as Markdown."""
    if name == "parity" and found:
        ends = {case: _equal(each["end"], found["cpu"][REFERENCE]["end"]) for case, each in found["here"].items()}
        rows = [[case, f"{each:.2g}", ends[case]] for case, each in differences(found).items()]
        return _markdown(["", "losses differ by", "topologies equal after 3 updates"], rows)
    if name in ("llama_130m", "llama_350m") and found:
        rows = [
            [
                contender,
                f"{each['tokens_per_second']:,.0f}",
                f"{each['mfu']:.1%}" if each["mfu"] else "–",
                " / ".join(
                    f"{each[key] / 2**30:.2f}" if each.get(key) else "–" for key in ("peak_bytes", "planned_bytes")
                ),
                f"{each['update_steps']:.2f}" if each.get("update_steps") is not None else "–",
            ]
            for contender, each in found.items()
        ]
        return _markdown(["", "tokens per second", "MFU", "GiB, measured / planned", "an update, in steps"], rows)
    return [f"{key}: {value}" for key, value in found.items()]


def _gib(size: int | None) -> str:
    return f"{size / 2**30:.2f}" if size else "–"


def _equal(some: dict, others: dict) -> str:
    pairs = [
        (one, other)
        for name in some
        for row, other_row in zip(some[name], others[name], strict=True)
        for one, other in zip(row, other_row, strict=True)
    ]
    return f"{sum(one == other for one, other in pairs)} of {len(pairs)}"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    from nt_dist.planning.memory import markdown  # takes seconds: torch

    return markdown([list(zip(head, row, strict=True)) for row in rows]).splitlines()


if __name__ == "__main__":
    run_main(main)
