"""Whether a run that is killed goes on as if it had not been: tried with a config of one's own, on this machine.

2N steps in one go; the same command anew, its ranks killed (SIGKILL) some steps after step N was saved, and started
again. Both must then have the same lines of metrics, weights, moments and topologies, and stand at the same place in
the order of samples.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nt_dist.checkpoint.folder import CHECKPOINTS, checkpoints, delete, name_of
from nt_dist.checkpoint.inspect import Comparison, compare
from nt_dist.errors import RunError
from nt_dist.parallel.launcher import LOOPBACK, free_port
from nt_dist.training.metrics_log import MEASURED, METRICS, read_metrics

POLL_SECONDS = 0.02
LOG_LINES = 20


@dataclass(frozen=True)
class ResumeCheck:
    """How the resumed run compares with the uninterrupted one."""

    steps: int  # whose lines of metrics were compared
    killed_at: int  # the last step that was logged before the kill
    lines: list[str]  # what differs in the lines, one message each
    state: Comparison  # what differs between the last checkpoints

    @property
    def is_same(self) -> bool:
        """Whether nothing differs, to the bit."""
        return not self.lines and self.state.is_same_state


def check_resume(command: Sequence[str], folder: Path, ranks: int, half: int) -> ResumeCheck:
    """Run twice, once killed and resumed, and compare.

    ``command`` is that of :func:`training_command`, ``folder`` an empty or new one for both runs, whose ``ranks`` are
    all on this machine. A checkpoint is saved at step N = ``half``; the runs end at 2N. RunError, with the end of what
    rank 0 said, if a run failed or ended before it could be killed.
    """
    settings = (f"run.save_every={half}", "run.log_every=1", "run.eval_every=0", "run.keep=1000")
    stop = f"run.stop_after={2 * half}"
    whole, broken = folder / "whole", folder / "broken"

    def started(run: Path, name: str, *more: str) -> AbstractContextManager["_Ranks"]:
        return _started([*command, f"run.dir={run}", *settings, *more], folder / f"{name}.log", ranks)

    with started(whole, "whole", stop) as running:
        running.wait()
    with started(broken, "killed") as running:  # it would go on as long as it can
        killed_at = running.wait_for(half + max(1, half // 2), broken, half)
    for later in checkpoints(broken / CHECKPOINTS):  # as if the kill had come at once
        if later.step > half:
            delete(later)
    with started(broken, "resumed", stop) as running:
        running.wait()
    last = Path(CHECKPOINTS) / name_of(2 * half)
    lines = differing_lines(*(read_metrics(each / METRICS) for each in (whole, broken)))
    return ResumeCheck(2 * half, killed_at, lines, compare(whole / last, broken / last))


def differing_lines(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[str]:
    """Compare two lists of lines of metrics but for what a clock or a meter has measured; say what differs."""
    problems = []
    if len(expected) != len(found):
        problems.append(f"{len(found)} lines of metrics, not {len(expected)}")
    for one, other in zip(expected, found, strict=False):
        for key in dict.fromkeys([*one, *other]):
            if key not in MEASURED and one.get(key) != other.get(key):
                problems.append(f"step {one['step']}: {key} is {other.get(key)!r}, not {one.get(key)!r}")
    return problems


@dataclass(frozen=True)
class _Ranks:
    """The processes of a run, and what they say."""

    processes: list[subprocess.Popen]
    log: Path

    def wait(self) -> None:
        """Wait until all have ended well."""
        for process in self.processes:
            if process.wait() != 0:
                raise self._failed(f"a rank left with exit code {process.returncode}")

    def wait_for(self, step: int, run: Path, saved: int) -> int:
        """Wait until ``step`` is logged and the checkpoint of step ``saved`` is there; return the last step logged."""
        logged = 0
        while logged < step or not (run / CHECKPOINTS / name_of(saved)).is_dir():
            time.sleep(POLL_SECONDS)
            ended = any(process.poll() is not None for process in self.processes)
            logged = max((record["step"] for record in read_metrics(run / METRICS)), default=0)
            if ended:
                raise self._failed(f"it ended at step {logged} before it could be killed; give it more train.steps")
        return logged

    def _failed(self, what: str) -> RunError:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return RunError("\n".join([f"{self.log.stem}: {what}; {self.log} ends with", *lines]))


@contextmanager
def _started(command: Sequence[str], log: Path, ranks: int) -> Iterator[_Ranks]:
    """Start a run's ranks, each at the head of a process group of its own; none outlives the context."""
    meeting = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    running = _Ranks([], log)
    try:
        with log.open("wb") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            for rank in range(ranks):
                environment = {**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
                running.processes.append(process)
        yield running
    finally:
        for process in running.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in running.processes:
            process.wait()


def training_command(script: Path, config: str, ds_config: str | None, overrides: Sequence[str]) -> list[str]:
    """The command line of one rank of a training run, with this interpreter."""
    json = ["--ds_config", ds_config] if ds_config else []
    return [sys.executable, str(script), "--config", config, *json, *overrides]
