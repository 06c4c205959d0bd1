"""What both benchmarks measure: one trainer a density, on the same random samples, on one rank."""

from collections.abc import Callable
from dataclasses import dataclass

import deepspeed
import torch

from nt_dist.config import Config
from nt_dist.data.loader import Batch
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import OptimizerState, optimizer_state
from nt_dist.errors import ConfigError
from nt_dist.families import make_config
from nt_dist.model.trails import build_model
from nt_dist.parallel.mesh import Mesh
from nt_dist.training.topology_updates import TopologyUpdater

DENSE = 1.0


def at_density(config: Config, density: float) -> Config:
    """Returns the same config at another density, checked again.

    Raises:
        ConfigError: The density or the config cannot be.
    """
    sections = config.to_dict()
    sections["sparsity"]["density"] = density
    return make_config(sections, config.deepspeed, config.world_size)


def check(config: Config) -> None:
    """Refuses what cannot be benchmarked.

    Raises:
        ConfigError: With every problem.
    """
    problems = []
    if config.world_size != 1:
        problems.append(f"a benchmark runs on one rank, not on {config.world_size}: start it with python")
    if config.sparsity.update_every == 0:
        problems.append("sparsity.update_every = 0: a benchmark measures topology updates, so there must be some")
    elif config.train.steps <= config.sparsity.update_every:
        problems.append(
            f"train.steps = {config.train.steps} must be greater than sparsity.update_every = "
            f"{config.sparsity.update_every}, or there is no topology update to measure"
        )
    if problems:
        raise ConfigError(problems)


def random_batches(config: Config, device: torch.device) -> list[Batch]:
    """The micro-batches of one step: uniformly random inputs and targets, every one of them real."""
    generator = torch.Generator().manual_seed(config.train.seed)
    family, size = config.family, config.train.micro_batch_size
    shape = (size, family.positions(config))
    values, dtype = (256, torch.uint8) if family.reads_bytes else (family.num_outputs(config), torch.long)
    batches = []
    for _ in range(config.accumulation_steps):
        inputs = torch.randint(values, (size, *family.input_shape(config)), generator=generator, dtype=dtype)
        targets = torch.randint(family.num_outputs(config), shape, generator=generator)
        batches.append(Batch(inputs, targets, torch.ones(shape)).to(device))
    return batches


def unit(config: Config) -> str:
    """What a trainer's speed is counted in."""
    return "pictures" if config.family.task == "image-classification" else "tokens"


@dataclass(frozen=True)
class Bench:
    """A trainer as train.py builds it, without data, logs and checkpoints.

    Attributes:
        config, mesh: Of this trainer.
        engine: Its DeepSpeed engine.
        state: Its masters and moments.
        topology: Its updater.
        batches: The micro-batches of every step.
    """

    config: Config
    mesh: Mesh
    engine: deepspeed.DeepSpeedEngine
    state: OptimizerState
    topology: TopologyUpdater
    batches: list[Batch]

    def step(self) -> None:
        """One ordinary step: forward, backward, optimizer."""
        train_step(self.engine, self.config, self.mesh, self.batches, 1)

    def step_before_update(self) -> None:
        """A step that keeps the dense gradients, if this config's updates need them."""
        step = self.update_step
        collects = self.topology.collects_at(step)
        train_step(self.engine, self.config, self.mesh, self.batches, step, collects)

    def update(self) -> None:
        """A topology update as in training: the update and the check of all replicas' checksums."""
        self.topology.update(self.update_step)
        self.topology.check(f"the update at step {self.update_step}")

    @property
    def update_step(self) -> int:
        """The first step with an update, whose share of replaced slots is the largest."""
        return self.config.sparsity.update_every


def build_bench(config: Config, mesh: Mesh) -> Bench:
    """Builds model, engine, optimizer state and updater of `config`."""
    model = build_model(config, mesh.place, mesh.device)
    engine = build_engine(config, model, mesh)
    state = optimizer_state(engine)
    state.create()
    topology = TopologyUpdater(config, mesh, model, state, engine)
    return Bench(config, mesh, engine, state, topology, random_batches(config, mesh.device))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What to call before looking at a clock: waits for the device, where it runs on its own."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
