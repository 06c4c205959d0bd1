"""What the ranks tell each other besides gradients and activations, against their number: real runs of a tiny model on
this machine, whose messages and bytes are counted, with fits that say what thousands of ranks would make of it.

Ranks are forks of one process that has imported everything: dozens of interpreters would take minutes to start. Times
are of rank 0's processor, as many ranks share few cores, and differ by machine: read them as ratios.
"""

import contextlib
import json
import math
import os
import resource
import socket
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist

from benchmarks.traffic import Traffic, counted_traffic
from nt_dist.command_line import run_main
from nt_dist.config import Config
from nt_dist.families import make_config
from nt_dist.parallel import launcher, meeting
from nt_dist.text.prepare import prepare_data
from nt_dist.training import loop

PROJECTED = (512, 4096)
STEPS, UPDATE_EVERY = 12, 4
SMALL = 256  # bytes; what a step sends more of at once is gradients or weights
WINDOW = 4.0  # seconds in which rank 0's watcher is looked at, while nothing else is to be done
TERMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": np.ones_like,
    "log2 n": np.log2,
    "n": lambda n: n,
    "n²": np.square,
}
PHASES = {
    "start": "start: all of it but the model",
    "meeting": "start: ranks come together, handshake, mesh",
    "step": f"ordinary step, up to {SMALL} bytes at once",
    "topology": "topology checksums",
    "integrity": "integrity check",
    "save": "save and commit",
    "watch": "watch, a second",
}
STORE_CALLS = ("set", "get", "add", "wait", "check", "compare_set", "multi_get", "multi_set", "append", "delete_key")


def control_config(folder: Path, ranks: int) -> Config:
    """A run of ``ranks`` ranks that does everything that the control plane is for, with next to no work."""
    return make_config(
        {
            "model": {
                "hidden_size": 8,
                "ffn_size": 16,
                "num_layers": 2,
                "num_attention_heads": 2,
                "vocab_size": 300,
                "max_seq_len": 8,
            },
            "trails": {"count": 2, "layers": 1},
            "sparsity": {"density": 0.5, "topology_shards": 2, "update_every": UPDATE_EVERY},
            "data": {"source": "jsonl", "path": f"{folder}/text.jsonl", "prepared": f"{folder}/data", "num_workers": 0},
            "train": {"steps": STEPS, "batch_size": ranks, "micro_batch_size": 1, "warmup_steps": 0},
            "run": {
                "dir": f"{folder}/run-{ranks}",
                "save_every": 6,
                "eval_every": 0,
                "eval_batches": 1,
                "log_every": 100,
                "check_every": 5,
                "async_save": False,
                "loggers": [],
            },
        },
        {"zero_optimization": {"stage": 1}},
        ranks,
    )


class Recorder:
    """Counts by phase of a run: collectives, their bytes, requests to the store, rank 0's time on a processor."""

    def __init__(self, traffic: Traffic):
        self.traffic, self.phase = traffic, "start"
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.held: list[Any] = []
        self._since = time.process_time()

    def enter(self, phase: str) -> str:
        """Let what follows belong to ``phase``; return the phase before."""
        now = time.process_time()
        self.counts[self.phase]["seconds"] += now - self._since
        for (_, operation), calls in self.traffic.calls.items():
            self.counts[self.phase][f"calls of {operation}"] += calls
            self.counts[self.phase]["calls"] += calls
        self.counts[self.phase]["bytes"] += sum(self.traffic.payload.values())
        self.traffic.calls.clear()
        self.traffic.payload.clear()
        before, self.phase, self._since = self.phase, phase, now
        self.traffic.largest = SMALL if phase == "step" else math.inf
        return before

    @contextlib.contextmanager
    def within(self, phase: str, once: bool = True) -> Iterator[None]:
        """Count for ``phase`` within, and how often that was."""
        before = self.enter(phase)
        self.counts[phase]["times"] += once
        try:
            yield
        finally:
            self.enter(before)

    def asked(self, name: str) -> None:
        """Note a request to the store."""
        self.counts[self.phase]["requests"] += 1

    def wrap(self, stack: contextlib.ExitStack, owner: Any, name: str, phase: str) -> None:
        """Have all calls of a function counted for ``phase``."""
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with self.within(phase):
                return original(*arguments, **named)

        stack.enter_context(mock.patch.object(owner, name, call))


def counting_store(store: dist.Store, recorder: Recorder) -> dist.Store:
    """A store that passes everything on and counts it, also what torch asks for in C++."""

    def passed_on(name: str) -> Callable:
        def call(self: dist.Store, *arguments: Any) -> Any:
            recorder.asked(name)
            return getattr(store, name)(*arguments)

        return call

    def wait(self: dist.Store, keys: list[str], *timeout: Any) -> None:
        recorder.asked("wait")
        store.wait(keys, *timeout)

    methods = {name: passed_on(name) for name in STORE_CALLS} | {"wait": wait, "clone": lambda self: self}
    made = type("CountingStore", (dist.Store,), methods)()
    recorder.held.append(made)  # C++ keeps its own half only, and with it no method of this one
    return made


def measured_rank(folder: Path, config: Config, rank: int, size: int, port: int) -> dict[str, dict[str, float]]:
    """Train as rank ``rank``; what was counted, by phase."""
    where = {"MASTER_ADDR": launcher.LOOPBACK, "MASTER_PORT": str(port)}
    os.environ.update(where, RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    with counted_traffic(objects=True) as traffic, contextlib.ExitStack() as stack:
        recorder = Recorder(traffic)
        original_store, original_meet, run = dist.TCPStore, meeting.meet, loop.Trainer.run
        build, step = loop.build_engine, loop.Trainer.train_one

        class CountedTCPStore(original_store):
            def add(self, *arguments: Any) -> int:
                recorder.asked("add")
                return super().add(*arguments)

            def set(self, *arguments: Any) -> None:
                recorder.asked("set")
                super().set(*arguments)

            def append(self, *arguments: Any) -> None:
                recorder.asked("append")
                super().append(*arguments)

        def meet(timeout: Any) -> dist.Store:
            with mock.patch.object(dist, "TCPStore", CountedTCPStore):
                return counting_store(original_meet(timeout), recorder)

        def watch_and_run(trainer: loop.Trainer) -> int:
            recorder.enter("idle")
            dist.distributed_c10d.barrier()
            before = watcher_seconds()
            time.sleep(WINDOW)
            recorder.counts["watch"].update(seconds=(watcher_seconds() - before) / WINDOW, times=1)
            dist.distributed_c10d.barrier()
            recorder.enter("run")
            return run(trainer)

        def build_engine(*arguments: Any) -> Any:
            with recorder.within("engine"):
                return build(*arguments)

        def train_one(trainer: loop.Trainer, number: int) -> Any:
            updates = number % UPDATE_EVERY == 0
            with recorder.within("first step" if number == 1 else "step with an update" if updates else "step"):
                return step(trainer, number)

        stack.enter_context(mock.patch("nt_dist.parallel.mesh.meet", meet))
        stack.enter_context(mock.patch.object(loop.Trainer, "run", watch_and_run))
        stack.enter_context(mock.patch.object(loop, "build_engine", build_engine))
        stack.enter_context(mock.patch.object(loop.Trainer, "train_one", train_one))
        recorder.wrap(stack, loop, "init_mesh", "meeting")
        recorder.wrap(stack, loop.TopologyUpdater, "check", "topology")
        recorder.wrap(stack, loop.Integrity, "check", "integrity")
        recorder.wrap(stack, loop.Trainer, "save", "save")
        traffic.start_all()
        code = loop.train(config)
        recorder.enter("end")
    assert code == 0
    return {phase: dict(counts) for phase, counts in recorder.counts.items()}


def watcher_seconds() -> float:
    """The time that this rank's watcher has had on a processor."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure_control(sizes: list[int], say: Callable[[str], None]) -> dict[str, dict[str, list[float]]]:
    """Run each number of ranks; the figures of one occasion at rank 0, by phase and kind, for each of ``sizes``.

    Requests to the store, which rank 0 serves, are those of all ranks.
    """
    figures: dict[str, dict[str, list[float]]] = {phase: defaultdict(list) for phase in PHASES}
    with tempfile.TemporaryDirectory(prefix="nt_dist-control-") as name:
        folder = Path(name)
        lines = (json.dumps({"text": f"line {number} of those that nobody reads"}) for number in range(400))
        (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
        prepare_data(control_config(folder, 2))
        for size in sizes:
            began = time.monotonic()
            ranks = run_ranks(folder, size)
            say(f"{size} ranks: {time.monotonic() - began:.0f} s")
            for phase in PHASES:
                found = [each.get(phase, {}) for each in ranks]
                times = found[0].get("times", 1)
                for kind in ("calls", "bytes", "seconds"):
                    figures[phase][kind].append(found[0].get(kind, 0) / times)
                figures[phase]["requests"].append(sum(each.get("requests", 0) for each in found) / times)
    return figures


def run_ranks(folder: Path, size: int) -> list[dict]:
    """Fork ``size`` ranks; what each has counted."""
    config, port, children = control_config(folder, size), launcher.free_port(), []
    for rank in range(size):
        reader, writer = socket.socketpair()
        child = os.fork()
        if not child:
            reader.close()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

            def work(rank: int = rank, writer: socket.socket = writer) -> int:
                writer.sendall(json.dumps(measured_rank(folder, config, rank, size, port)).encode())
                return 0

            run_main(work)
            os._exit(1)  # it leaves by itself
        writer.close()
        children.append((child, reader))
    found = []
    for child, reader in children:
        with reader, reader.makefile("rb") as answer:
            found.append(json.loads(answer.read() or b"null"))
        os.waitpid(child, 0)
    assert all(found), "a rank has failed; what it said is above"
    return found


def fit(sizes: list[int], values: list[float]) -> dict[str, float]:
    """Coefficients, none negative, of the terms that say best what ``values`` are at ``sizes``, by relative error.

    A term counts only where it halves what the fewer ones miss.
    """
    n, y = np.asarray(sizes, float), np.asarray(values, float)
    if not y.any():
        return {}
    best, missed = {}, np.inf
    for count in range(1, len(TERMS) + 1):
        for names in combinations(TERMS, count):
            columns = np.stack([TERMS[name](n) for name in names], axis=1) / y.max()
            weights = 1 / np.maximum(y / y.max(), 1e-9)
            found, *_ = np.linalg.lstsq(columns * weights[:, None], (y / y.max()) * weights, rcond=None)
            off = float(np.square((columns @ found - y / y.max()) * weights).sum())
            if (found >= 0).all() and off < missed / 2 - 1e-12:
                best, missed = dict(zip(names, map(float, found), strict=True)), off
    return best


def at(coefficients: dict[str, float], ranks: int) -> float:
    """What a fit says of ``ranks`` ranks."""
    return sum(weight * float(TERMS[name](np.asarray(float(ranks)))) for name, weight in coefficients.items())


def control_table(sizes: list[int], figures: dict[str, dict[str, list[float]]]) -> str:
    """Counts and times at rank 0, their fits, and what these say of more ranks, as Markdown."""
    units = {
        "calls": ("collectives", "{:,.0f}", 1),
        "bytes": ("KiB in them", "{:,.1f}", 1 / 1024),
        "requests": ("requests to the store", "{:,.0f}", 1),
        "seconds": ("ms of rank 0's processor", "{:,.1f}", 1e3),
    }
    head = ["at rank 0", "what", *(f"n = {size}" for size in sizes), "fit", *(f"{size:,}" for size in PROJECTED)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for phase, title in PHASES.items():
        for kind, (what, form, factor) in units.items():
            values = [value * factor for value in figures[phase][kind]]
            if not any(values):
                continue
            terms = fit(sizes, values)
            said = " + ".join(f"{weight:.3g} {name}".strip() for name, weight in terms.items())
            what = "ms of its watcher" if phase == "watch" else what
            numbers = [form.format(value) for value in (*values, *(at(terms, size) for size in PROJECTED))]
            lines.append(f"| {title} | {what} | {' | '.join([*numbers[: len(sizes)], said, *numbers[len(sizes) :]])} |")
    return "\n".join(lines)


def limit_files() -> None:
    """Let this process and its children have as many files as the system allows: gloo takes some for each peer."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
