"""A run, from its config to its table: everything is made once, then one loop calls each part by name."""

import gc
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from nt_dist.checkpoint import checkpoint
from nt_dist.checkpoint.folder import CHECKPOINTS, check_writable, find, verify
from nt_dist.checkpoint.manifest import CONFIG, TrainingState, read_manifest
from nt_dist.checkpoint.saving import Saver
from nt_dist.checkpoint.weights import check_config
from nt_dist.command_line import Telling
from nt_dist.config import Config
from nt_dist.config.rules import warnings, with_epochs
from nt_dist.config.settings import by_key
from nt_dist.config.stages import last_of_stage, last_step, stage_at
from nt_dist.data.loader import EvaluationBatches, StepLoader, StepsOnDevice
from nt_dist.data.order import first_of_step
from nt_dist.engine.averaging import average_weights, averaged
from nt_dist.engine.bad_steps import BadStep, BadSteps, StepVerdict
from nt_dist.engine.engine import StepResult, build_engine, release, train_step
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.engine.step_guard import StepGuard
from nt_dist.errors import CheckpointError
from nt_dist.evaluation.evaluate import evaluate
from nt_dist.evaluation.topology import trail_overlap
from nt_dist.messages import LOGGER, start_logging
from nt_dist.model.flops import token_flops
from nt_dist.model.trails import weights_of
from nt_dist.parallel import launcher
from nt_dist.parallel.agree import agree, naming_lost_ranks
from nt_dist.parallel.handshake import commit
from nt_dist.parallel.mesh import Mesh, close, init_mesh
from nt_dist.training.integrity import Integrity
from nt_dist.training.metrics_log import METRICS, check_continued, put_aside
from nt_dist.training.profiling import StepProfile, peak_memory
from nt_dist.training.reporter import Reporter, say_what_is_trained
from nt_dist.training.run_data import on_other_data, open_data, passes, say_sources
from nt_dist.training.run_folder import claim, console_log, lacks_evaluation, print_table, write_config
from nt_dist.training.signals import LEFT_EARLY, ExitRequest, ExitRequested, listening
from nt_dist.training.topology_updates import TopologyUpdater
from nt_dist.training.trackers import check_loggers
from nt_dist.watch.watching import watched

_KEPT = ("tokens", "regrown", "drop_fraction", "metrics_lines")  # numbers of a Trainer that a checkpoint keeps


def train(config: Config) -> int:
    """Trains or continues the run in ``run.dir`` and ends with its table; every rank calls it.

    Returns the exit code: 0, or LEFT_EARLY where a signal asked the run to save and leave. NTDistError on every rank if
    the run cannot start or go on.
    """
    start_logging(launcher.process().rank)
    folder, code, log = Path(config.run.dir), 0, None
    with ExitStack() as stack:
        stdout = stack.enter_context(redirect_stdout(Telling(sys.stdout)))
        exit_request = stack.enter_context(listening())
        try:
            with exit_request.interrupts_work("the ranks came together: nothing has begun"):
                mesh = init_mesh(config)
        except ExitRequested as reason:
            LOGGER.info("%s", reason)
            return LEFT_EARLY
        stack.enter_context(naming_lost_ranks(mesh.rank))
        exit_request.heartbeat = stack.enter_context(watched(mesh, config))
        mesh.working = exit_request.heartbeat.working
        agree(mesh, lambda: check_loggers(config.run.loggers), only_main=True)
        lock = agree(mesh, lambda: claim(folder) if mesh.is_main else None)
        if mesh.is_main:
            stack.enter_context(lock)
            log = stack.enter_context(console_log(folder, mesh.world_size))
            for warning in warnings(config):
                LOGGER.warning("%s", warning)
        try:
            if config.train.epochs:
                config = with_epochs(config, len(open_data(config, mesh, exit_request).train))
            found = find(folder / CHECKPOINTS, config.run.resume_from, mesh)
            manifest = agree(mesh, lambda: read_manifest(found), only_main=True) if found else None
            if manifest:  # before any work is done for nothing
                agree(mesh, lambda: check_config(found, manifest, config, resuming=True), only_main=True)
                where = manifest.training_state, found.parent.parent
                config = agree(mesh, lambda: config.family.continued(config, *where, True), only_main=True)
            done = manifest.training_state.step if manifest else 0
            if done < last_step(config):
                check_writable(folder / CHECKPOINTS, mesh)
            if done < last_step(config) or agree(mesh, lambda: lacks_evaluation(config, done), only_main=True):
                code = train_stages(config, mesh, found, done, exit_request)
            else:
                LOGGER.info("%s holds step %d of %d: nothing is left to do", found, done, last_step(config))
        except ExitRequested as reason:
            LOGGER.info("%s", reason)
            code = LEFT_EARLY
        if mesh.is_main and code == 0:
            print_table(config, log)
            if stdout.refused:
                LOGGER.warning("standard output cannot be written: %s; the figures are in %s", stdout.refused, folder)
    close()
    return code


def train_stages(config: Config, mesh: Mesh, found: Path | None, done: int, exit_request: ExitRequest) -> int:
    """Trains on after step ``done``, of the checkpoint ``found``; returns the exit code.

    A stage of a run whose density falls ends with a checkpoint, which the next begins with, pruned, in a new engine.
    """
    while True:
        stage = stage_at(config, done + 1)
        with closing(Trainer(stage, mesh, found, exit_request)) as trainer:
            agree(mesh, lambda: write_config(Path(config.run.dir), config), only_main=True)
            with trainer.saver.finishing():
                code = trainer.run()
        found, done = trainer.saver.latest, trainer.step
        if code or done >= last_step(config):
            return code
        release(trainer.engine)
        del trainer
        gc.collect()  # engines are full of cycles
        if mesh.device.type == "cuda":
            torch.cuda.empty_cache()


def is_due(step: int, every: int, end: int) -> bool:
    """Whether what is done every so many steps (0: never) is done after ``step``; at the end it always is."""
    return step == end or (every > 0 and step % every == 0)


class Trainer:
    """One run between its first and its last step; every rank has one.

    ``found`` is a checkpoint, verified, to continue from. ExitRequested if a signal came while data was prepared;
    NTDistError on every rank if data, checkpoint or folder cannot be used.
    """

    def __init__(self, config: Config, mesh: Mesh, found: Path | None, exit_request: ExitRequest):
        self.config, self.mesh, self.folder = config, mesh, Path(config.run.dir)
        self.exit_request, self.heartbeat = exit_request, exit_request.heartbeat
        self.step = self.tokens = self.consumed_samples = self.metrics_lines = 0
        self.regrown = self.drop_fraction = 0.0  # of the last update
        self.changed: list[dict[str, Any]] = []  # lines of metrics.jsonl that say that other data begin
        self.data = open_data(config, mesh, exit_request)
        self.heartbeat.enter("building")
        self.model = build_mesh_model(config, mesh)
        self.weights = weights_of(self.model)
        self.engine = build_engine(config, self.model, mesh)
        self.optimizer_state = optimizer_state(self.engine)
        self.optimizer_state.create()
        parts = config, mesh, self.model, self.optimizer_state
        self.saver = Saver(self.folder / CHECKPOINTS, *parts, self.heartbeat.beat)
        self.guard: StepGuard = self.engine.step_guard
        self.guard.before_wait = self.before_wait
        self.bad_steps = BadSteps(config.train.max_bad_steps)
        self.topology = TopologyUpdater(config, mesh, self.model, self.optimizer_state, self.engine)
        self.integrity = Integrity(mesh, self.model, self.optimizer_state)
        if found:
            self.heartbeat.enter("loading")
            self.load(found)
        self.checksum = self.topology.check("loading" if found else "the start")
        say_what_is_trained(config, mesh, self.data.train)
        self.flops = token_flops(config)
        self.profile = StepProfile(config.run.profile, self.folder, mesh.device.type == "cuda")
        agree(mesh, lambda: self.keep_metrics(found), only_main=True)
        self.open_readers_and_writers()

    def keep_metrics(self, found: Path | None) -> None:
        """Makes sure that nothing is cut off ``metrics.jsonl``, or takes the place of ``config.toml``, that this start
        does not continue."""
        is_own = found is not None and found.resolve().parent == (self.folder / CHECKPOINTS).resolve()
        if is_own and self.step:
            check_continued(self.folder / METRICS, self.step, self.metrics_lines)
        else:
            put_aside(self.folder / METRICS)
            settings = self.folder / CONFIG
            if settings.is_file() and settings.read_bytes() != self.config.to_toml().encode():
                put_aside(settings, "settings")

    def run(self) -> int:
        """Trains up to the last step of its stage, or until a signal asks to leave; returns the exit code."""
        run, steps, last = self.config.run, self.config.train.steps, last_of_stage(self.config, self.step)
        self.exit_request.check_before_first_step(self.mesh)
        if self.step == steps and not self.evaluate():
            return LEFT_EARLY
        first = self.step + 1
        while self.step < last:
            step = self.step + 1
            self.heartbeat.enter("compiling" if step == first else "stepping", step)
            began = time.perf_counter()
            with self.profile.step(step) if self.mesh.is_main else nullcontext():
                result = self.train_one(step)
            if self.step != step:  # it went back to a checkpoint
                continue
            self.count(result, time.perf_counter() - began)
            is_requested, writing, is_overdue = self.guard.flags
            leaving = is_requested and step < last
            if self.saver.is_under_way and not writing:
                self.heartbeat.enter("saving")
                self.saver.settle()
            if is_due(step, run.log_every, steps):
                self.log(result)
            if is_due(step, run.eval_every, steps) and not leaving:
                leaving = not self.evaluate()
            is_saved = is_due(step, run.save_every, last) or leaving or is_overdue
            if run.check_every and (is_due(step, run.check_every, last) or is_saved):  # before it can be saved
                self.checksum = self.topology.check(f"step {step}")
                self.integrity.check(f"step {step}")
            if is_saved:
                self.save(is_last=leaving or step == last)
            if leaving:
                LOGGER.info("asked to leave: step %d of %d is saved, the same command goes on from it", step, steps)
                return LEFT_EARLY
        self.heartbeat.enter("ending")
        epochs, samples = self.consumed_samples / len(self.data.train), f"{len(self.data.train):,}"
        LOGGER.info("%.3g epochs of %s samples are done", epochs, samples)
        say_sources(self.data.train, self.consumed_samples)
        return 0

    def before_wait(self) -> tuple[bool, ...]:
        """Fetches the next step's batches, and says what all ranks must know of this one."""
        self.batches.fetch()
        return self.exit_request.is_set, self.saver.is_writing, self.saver.is_overdue

    def train_one(self, step: int) -> StepResult:
        """One optimizer step, and the topology update that follows it where one is due.

        A bad step changes nothing but ``step`` and ``consumed_samples``, or takes the run back to its last checkpoint;
        RunError if there were too many in a row.
        """
        collect = self.topology.collects_at(step)
        size = self.config.train.batch_size
        first = first_of_step(self.consumed_samples, size, self.bad_steps.left_out)
        result = train_step(self.engine, self.config, self.mesh, next(self.batches), step, collect)
        if not result.applied:
            self.topology.skip()
        if result.verdict is not StepVerdict.GOOD and self.note_bad_step(step, result, (first, first + size)):
            return result
        if result.applied:
            self.bad_steps.applied(step)
            average_weights(self.config, self.model, self.optimizer_state, step)
            if self.topology.updates_at(step):
                self.heartbeat.enter("updating topology")
                self.regrown, self.drop_fraction = self.topology.update(step)
                self.checksum = self.topology.check(f"the update at step {step}")
        self.step, self.consumed_samples = step, first + size
        return result

    def note_bad_step(self, step: int, result: StepResult, samples: tuple[int, int]) -> bool:
        """Counts and reports a bad step; returns whether the run went back to its last checkpoint for it."""
        found, done = None, "seen" if result.applied else "skipped"
        if not result.applied:
            self.saver.settle()  # what was copied before this step is good, whatever follows
        if result.verdict.is_spike and self.config.train.on_spike == "rollback":
            found = self.saver.latest
            done = "rolled back" if found else done
        bad = BadStep(step, result.verdict.words, result.loss, result.grad_norm, samples, done)
        if self.mesh.is_main:
            LOGGER.warning("%s", bad)
        agree(self.mesh, lambda: self.bad_steps.add(bad, result.verdict))
        if found:
            self.go_back(found)
        elif self.reporter:
            self.reporter.noted(bad.line(step))
        return found is not None

    def go_back(self, found: Path) -> None:
        """Continues from a checkpoint with what is known now about bad steps, metrics and curves cut off behind it."""
        known = self.bad_steps.state()
        verify(found, self.mesh)
        self.load(found)
        self.bad_steps.restore(known)
        self.checksum = self.topology.check("loading")
        self.close_readers_and_writers()
        self.open_readers_and_writers()
        for line in self.bad_steps.lines_cut_off(self.step) if self.reporter else ():
            self.reporter.noted(line)

    def count(self, result: StepResult, seconds: float) -> None:
        """Adds a step to the sums and moves the progress bar."""
        self.tokens += round(float(result.tokens))
        self.timed_tokens += round(float(result.tokens))
        self.seconds += seconds
        if self.reporter:
            self.reporter.stepped(self.step, result.loss, self.timed_tokens / self.seconds, seconds)

    def log(self, result: StepResult) -> None:
        """Writes the step's line of ``metrics.jsonl``."""
        memory = self.mesh.all_reduce(torch.tensor(peak_memory(self.mesh.device), device=self.mesh.device), op="max")
        pace = self.timed_tokens / self.seconds
        record = {
            "step": self.step,
            "tokens": self.tokens,
            **passes(self.data.train, self.consumed_samples),
            "loss": result.loss,
            "objective": result.objective,
            **({} if result.joint_loss is None else {"joint_loss": result.joint_loss}),
            "loss_per_trail": result.loss_per_trail,
            "lr": result.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens_per_second": pace,
            "flops_per_second_dense_equivalent": pace * self.flops.training_dense,
            "flops_per_second_sparse_effective": pace * self.flops.training_sparse,
            "memory": int(memory),
            "density": self.topology.density,
            "drop_fraction": self.drop_fraction,
            "regrown": self.regrown,
            "topology_checksum": self.checksum,
            **self.bad_steps.counts,
        }
        if self.reporter:
            self.reporter.logged(record)
        self.seconds, self.timed_tokens = 0.0, 0

    def evaluate(self) -> bool:
        """Evaluates on validation samples and writes the line; False if a signal has stopped it before."""
        config, axis, stops = self.config, self.mesh.data, []
        self.heartbeat.enter("evaluating")
        size, count = config.train.micro_batch_size, config.run.eval_batches * config.train.batch_size
        batches = EvaluationBatches(self.data.validation, size, count, data_rank=axis.rank, data_degree=axis.degree)

        def until_set(some: Iterable) -> Iterable:
            return self.exit_request.until_set(self.mesh, some, lambda: stops.append(self.step))

        with averaged(self.model, self.optimizer_state):
            figures = evaluate(self.model, batches, self.mesh, config, until_set)
        if stops:
            return False
        overlap = trail_overlap(self.weights.values(), self.mesh)
        if self.reporter:
            samples = [len(batches.chosen), len(self.data.validation)]
            self.reporter.evaluated({"step": self.step, "samples": samples, "eval": figures}, overlap)
        return True

    def save(self, is_last: bool) -> None:
        """Saves. What fails is a warning as long as it is not this process's last save."""
        self.heartbeat.enter("saving")
        self.metrics_lines = self.reporter.lines_on_disk() if self.reporter else 0
        extra = {name: getattr(self, name) for name in _KEPT} | self.data.identity
        extra |= {"bad_steps": self.bad_steps.state(), "guard": self.guard.state(), "num_samples": len(self.data.train)}
        extra |= {"commit": commit()} if self.reporter else {}
        progress = TrainingState(self.step, self.consumed_samples, self.optimizer_state.step, self.data.digest, extra)
        self.saver.save(progress, is_last)

    def load(self, found: Path) -> None:
        """Continues from a checkpoint; CheckpointError on every rank if it is not of this config and data."""
        arguments = (found, self.config, self.mesh, self.model, self.optimizer_state)
        digest = None if self.config.run.allow_schedule_change else self.data.digest
        before, self.changed = checkpoint.load(*arguments, data_digest=digest, verified=True), []
        progress, count = before, len(self.data.train)  # the same texts in another layout are other samples
        if before.data_digest != self.data.digest or before.extra.get("num_samples", count) != count:
            progress = agree(self.mesh, lambda: on_other_data(found, before, self.data))
            self.changed = [{"step": progress.step + 1, "other_data": self.data.digest, "consumed_samples": 0}]
        self.saver.latest = found
        self.step, self.consumed_samples = progress.step, progress.consumed_samples
        agree(
            self.mesh, lambda: self.restore(found, {"metrics_lines": 0, **progress.extra})
        )  # older ones do not count them
        LOGGER.info("continuing from %s, step %d of %d", found, self.step, self.config.train.steps)

    def restore(self, found: Path, extra: Mapping[str, Any]) -> None:
        """Takes back what a checkpoint's manifest kept beside the model; CheckpointError if that is none of it."""
        for name in _KEPT:
            if not isinstance(extra.get(name), int | float):
                raise CheckpointError(f"{found}: the manifest's progress.extra.{name} must be a number")
            setattr(self, name, extra[name])
        try:
            self.bad_steps.restore(extra.get("bad_steps", {}))  # older checkpoints have none
            self.guard.restore(extra.get("guard", {}))
        except (AttributeError, TypeError, ValueError) as problem:
            raise CheckpointError(f"{found}: the manifest's progress.extra has no account of bad steps") from problem

    def open_readers_and_writers(self) -> None:
        """Makes what stands at a step: this rank's micro-batches from here on, and what the main rank writes."""
        train, axis = self.config.train, self.mesh.data
        sizes = (train.batch_size, train.micro_batch_size, axis.rank, axis.degree)
        where = (self.consumed_samples, self.config.data.num_workers, self.bad_steps.left_out)
        self.batches = StepsOnDevice(StepLoader(self.data.train, train.seed, *sizes, *where), self.mesh.device)
        run = (self.folder, self.config.family, self.step, last_step(self.config), self.weights, LOGGER.handlers)
        run = (*run, self.config.run.loggers, by_key(self.config.to_dict()))
        self.reporter = agree(self.mesh, lambda: Reporter(*run) if self.mesh.is_main else None)
        for line in self.changed if self.reporter else ():
            self.reporter.noted(line)
        self.seconds, self.timed_tokens = 0.0, 0  # since the last logged step

    def close(self) -> None:
        """Ends what runs beside the training: threads that read ahead or write, the bar, TensorBoard's writer."""
        self.saver.close()
        self.close_readers_and_writers()

    def close_readers_and_writers(self) -> None:
        """Ends what stands at a step: the threads that read ahead, the bar, the files of figures."""
        self.batches.close()
        if self.reporter:
            self.reporter.close()
