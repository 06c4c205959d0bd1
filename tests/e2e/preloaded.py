"""Commands as processes that need not import the libraries: forks of one that has done so.

``python -m tests.e2e.preloaded`` reads a JSON object a line, as :meth:`Commands.run` writes it, and answers in kind.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.forked import import_libraries

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("nt_dist.training.loop", "nt_dist.evaluation.evaluate_checkpoint", "nt_dist.export.huggingface")


class Commands:
    """Runs Python programs of this checkout in a folder, from one rank to several."""

    def __init__(self, folder: Path):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.preloaded"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: list[str], ranks: int = 0, timeout: float = 300.0) -> tuple[int, str]:
        """Run ``SCRIPT ARGUMENT …`` or ``-m MODULE ARGUMENT …``; the worst exit code, and what was written.

        ``ranks`` of 0 means without a launcher; more have the variables that DeepSpeed's sets.
        """
        self._process.stdin.write(json.dumps({"words": words, "ranks": ranks, "timeout": timeout}) + "\n")
        self._process.stdin.flush()
        return tuple(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process that commands are forks of."""
        self._process.stdin.close()
        self._process.wait()


def _main() -> None:
    import_libraries()
    for name in HEAVY:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), file=answers)


def _run(words: list[str], ranks: int, timeout: float) -> tuple[int, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    output = os.memfd_create("output")
    running = {}
    for rank in range(ranks or 1):
        variables = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks else {}
        child = os.fork()
        if child == 0:
            _become(words, variables, output)
        running[child] = rank
    codes, deadline = [], time.monotonic() + timeout
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            del running[child]
            codes.append(abs(os.waitstatus_to_exitcode(status)))
        elif time.monotonic() > deadline:
            for each in running:
                os.killpg(each, signal.SIGKILL)
        else:
            time.sleep(0.02)
    os.lseek(output, 0, os.SEEK_SET)
    with os.fdopen(output, "rb") as written:
        return max(codes), written.read().decode(errors="replace")


def _become(words: list[str], variables: dict[str, str], output: int) -> None:
    """Be the command: never returns."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for ours, theirs in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(ours, theirs)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
        os.environ.update(variables)
        is_module = words[0] == "-m"
        sys.argv = words[is_module:]
        run = runpy.run_module if is_module else runpy.run_path
        run(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main()
