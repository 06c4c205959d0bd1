"""Every setting: its default, what it says, and whether a resume may change it.

A config is a TOML file with one table per section below. ``load.py`` reads it, ``rules.py`` checks what takes more
than one key, ``deepspeed_json.py`` joins it with a DeepSpeed JSON. This package imports no torch, so that bad input is
refused before anything slow is loaded.
"""

from dataclasses import dataclass, field
from typing import Any

from nt_dist.config.keys import FREE, IDENTITY, SCHEDULE, Rule, above, at_least, key, keys_of, one_of, share, within
from nt_dist.config.values import plain, toml_value

ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
_BETAS = Rule("must be two numbers in [0, 1)", lambda value: all(0 <= beta < 1 for beta in value))
_SEED = Rule("must be in [0, 2^63)", lambda value: 0 <= value < 2**63)
_MOMENTUM = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)
_NOT_EMPTY = Rule("must not be empty", lambda value: value != "")


@dataclass(frozen=True)
class Trails:
    """The ensemble: how many members, and where they part."""

    count: int = key(3, IDENTITY, "Trails (ensemble members).", at_least(1))
    layers: int = key(
        4, IDENTITY, "Blocks in each trail; the others are the trunk, which all trails share.", at_least(1)
    )
    fork: str = key(
        "blocks",
        IDENTITY,
        'Where the trails part: "blocks", before the last trails.layers blocks, or "embedding", before the embedding '
        "(a full ensemble).",
        one_of("blocks", "embedding"),
    )
    final_norm_twice: bool = key(
        False, IDENTITY, "Apply each trail's final norm twice, as the paper's public code does."
    )


@dataclass(frozen=True)
class Sparsity:
    """How many weights are stored, where, and how their topology changes in training."""

    density: float = key(0.9, IDENTITY, "Share of the weights that is stored; 1: dense.", share())
    distribution: str = key(
        "erk",
        IDENTITY,
        "Density of each weight: erk or er (Erdős–Rényi, with or without kernel sizes) or uniform.",
        one_of("erk", "er", "uniform"),
    )
    storage: str = key(
        "auto",
        FREE,
        "compact (values and index), masked (dense with a mask) or auto (per weight, whichever takes fewer bytes).",
        one_of("auto", "compact", "masked"),
    )
    topology_shards: int = key(
        8,
        IDENTITY,
        "Equal shards of each weight, each with its own slots and updates; the tensor degree divides it.",
        at_least(1),
    )
    drop: str = key(
        "soft_magnitude",
        SCHEDULE,
        "Weights dropped in an update: soft_magnitude (sampled by |w|^temperature), magnitude (the smallest) or set "
        "(smallest positive, largest negative).",
        one_of("soft_magnitude", "magnitude", "set"),
    )
    temperature: float = key(3.0, SCHEDULE, "Exponent T of soft_magnitude.", above(0))
    grow: str = key(
        "gradient",
        SCHEDULE,
        "Weights regrown: gradient (where the dense gradient is largest) or random.",
        one_of("gradient", "random"),
    )
    drop_fraction: float = key(0.5, SCHEDULE, "Share of a shard's slots replaced in the first update.", share())
    drop_schedule: str = key(
        "cosine",
        SCHEDULE,
        "Course of the dropped share: cosine (to a hundredth), linear or constant.",
        one_of("cosine", "linear", "constant"),
    )
    update_every: int = key(50, SCHEDULE, "Steps between topology updates; 0: none (static sparse).", at_least(0))
    stop_fraction: float = key(
        1.0, SCHEDULE, "Share of train.steps after which the topology stays as it is.", within(0, 1)
    )
    new_moments: str = key(
        "zero",
        SCHEDULE,
        "AdamW's second moment of a new slot: zero, gradient (from the regrowth gradient) or mean (of the shard).",
        one_of("zero", "gradient", "mean"),
    )
    regrow_from: str = key(
        "all",
        SCHEDULE,
        "Micro-batches whose dense gradient decides where to regrow: all, or last_micro_batch (takes less time).",
        one_of("all", "last_micro_batch"),
    )
    exempt: tuple[str, ...] = key(
        (), IDENTITY, 'Names of weights kept dense; * and ? stand for anything, as in "blocks.*.attention.*".'
    )


@dataclass(frozen=True)
class Train:
    """The optimization."""

    steps: int = key(1000, SCHEDULE, "Optimizer steps.", at_least(1))
    batch_size: int = key(32, SCHEDULE, "Sequences in a global step.", at_least(1))
    micro_batch_size: int = key(16, FREE, "Sequences in one pass on one rank.", at_least(1))
    lr: float = key(2e-3, SCHEDULE, "Highest learning rate.", above(0))
    warmup_steps: int = key(100, SCHEDULE, "Steps of linear warm-up.", at_least(0))
    min_lr_ratio: float = key(0.1, SCHEDULE, "Last learning rate, as a share of the highest; cosine.", within(0, 1))
    optimizer: str = key("adamw", SCHEDULE, "adamw, or sgd (stochastic gradient descent).", one_of("adamw", "sgd"))
    momentum: float = key(0.9, SCHEDULE, "SGD's momentum; 0: none.", _MOMENTUM)
    nesterov: bool = key(False, SCHEDULE, "Use Nesterov's momentum in SGD.")
    betas: tuple[float, float] = key((0.9, 0.999), SCHEDULE, "Adam's two decay rates.", _BETAS)
    adam_eps: float = key(1e-8, SCHEDULE, "Adam's epsilon.", above(0))
    weight_decay: float = key(
        0.0,
        SCHEDULE,
        "Weight decay of the matrices (not of the norms): decoupled in AdamW, added to the gradient in SGD.",
        at_least(0),
    )
    grad_clip: float = key(0.0, SCHEDULE, "Largest norm of the gradient; 0: no clipping.", at_least(0))
    on_spike: str = key(
        "warn",
        FREE,
        "What a loss or gradient norm far outside its recent spread does: warn; skip (the step changes nothing); "
        "rollback (to the last checkpoint, going on without that step's samples); off (nothing is judged).",
        one_of("off", "warn", "skip", "rollback"),
    )
    spike_window: int = key(100, FREE, "Steps whose losses and norms are the recent spread.", at_least(8))
    spike_sigma: float = key(
        10.0, FREE, "Standard deviations (robust: by the median) above the median that make a spike.", above(0)
    )
    max_bad_steps: int = key(
        10,
        FREE,
        "Steps in a row that may be skipped or rolled back, no numbers or spikes; one more ends the run.",
        at_least(0),
    )
    seed: int = key(0, SCHEDULE, "Seed of initial values, topologies and the order of samples.", _SEED)
    precision: str = key("fp32", FREE, "fp32, or bf16 with fp32 masters and gradients.", one_of("fp32", "bf16"))
    activation_checkpointing: bool = key(False, FREE, "Compute each block again in backward to save memory.")

    @property
    def moments(self) -> tuple[str, ...]:
        """What the optimizer keeps of each value beside it, by torch's names."""
        if self.optimizer == "adamw":
            return ADAMW_MOMENTS
        return ("momentum_buffer",) if self.momentum > 0 else ()


@dataclass(frozen=True)
class Parallel:
    """The degrees of the mesh; the data degree is what the number of ranks leaves."""

    tensor: int = key(1, FREE, "Ranks that share each matrix.", at_least(1))
    pipe: int = key(1, FREE, "Stages of the pipeline.", at_least(1))
    trail: int = key(1, FREE, "Ranks that share the trails.", at_least(1))
    trunk: str = key(
        "auto",
        FREE,
        "How trail ranks compute the trunk: split (each for its share of the micro-batch), replicated (each for all of "
        "it) or auto (split where parallel.trail divides train.micro_batch_size).",
        one_of("auto", "split", "replicated"),
    )


@dataclass(frozen=True)
class Run:
    """The run's folder and how often things happen; none of it changes what is trained."""

    dir: str = key("runs/default", FREE, "Folder of the run; one that holds a checkpoint is continued.", _NOT_EMPTY)
    log_every: int = key(10, FREE, "Steps between lines of metrics.", at_least(1))
    eval_every: int = key(500, FREE, "Steps between evaluations; 0: at the end only.", at_least(0))
    eval_batches: int = key(
        20, FREE, "Batches of train.batch_size sequences in an evaluation; 0: all there are.", at_least(0)
    )
    check_every: int = key(
        100,
        FREE,
        "Steps between checks that copies of weights, topologies and moments are equal, numbers plausible; 0: never.",
        at_least(0),
    )
    save_every: int = key(500, FREE, "Steps between checkpoints; 0: at the end only.", at_least(0))
    keep: int = key(2, FREE, "Newest checkpoints kept.", at_least(1))
    keep_every: int = key(0, FREE, "Keep also each checkpoint whose step is a multiple of this; 0: none.", at_least(0))
    async_save: bool = key(
        True,
        FREE,
        "Write checkpoints beside the training, from a copy in host memory; the last one of a run is waited for.",
    )
    resume_from: str = key(
        "", FREE, "Checkpoint to start from where run.dir has none of its own; empty: from the beginning."
    )
    stop_after: int = key(
        0, FREE, "Save and leave after this step, with schedules as train.steps has them; 0: off.", at_least(0)
    )
    allow_schedule_change: bool = key(False, FREE, "Resume although schedule settings differ from the checkpoint's.")
    stall_timeout: float = key(
        45.0,
        FREE,
        "Seconds without a sign of life after which a rank stands still and the job is ended; five times the longest "
        "step where that is more; 0: nobody watches.",
        at_least(0),
    )
    phase_timeout: float = key(
        1800.0,
        FREE,
        "Seconds that building, loading, saving or a first step may take before it counts as one.",
        above(0),
    )


SECTIONS: dict[str, type] = {
    "trails": Trails,
    "sparsity": Sparsity,
    "train": Train,
    "parallel": Parallel,
    "run": Run,
}
ORDER = ("model", "trails", "sparsity", "data", "train", "parallel", "run")


def sections_of(family: Any) -> dict[str, type]:
    """All sections of a config of a family, in the order in which they are shown."""
    every = {**SECTIONS, **family.sections}
    return {name: every[name] for name in ORDER}


@dataclass(frozen=True)
class Config:
    """A whole, checked configuration: the TOML's sections and the DeepSpeed JSON that goes with them."""

    family: Any
    """The :class:`nt_dist.config.family.Family`: what kind of network is trained."""
    model: Any
    """The family's own section."""
    data: Any
    """The family's own section."""
    trails: Trails = field(default_factory=Trails)
    sparsity: Sparsity = field(default_factory=Sparsity)
    train: Train = field(default_factory=Train)
    parallel: Parallel = field(default_factory=Parallel)
    run: Run = field(default_factory=Run)
    deepspeed: dict[str, Any] = field(default_factory=dict, hash=False)
    """The DeepSpeed configuration, every "auto" filled in."""
    world_size: int = 1
    """Ranks of the run."""

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage."""
        return self.deepspeed["zero_optimization"]["stage"]

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of activations and of the weights that compute."""
        return 2 if self.train.precision == "bf16" else 4

    @property
    def model_degree(self) -> int:
        """Ranks that share one copy of the model."""
        return self.parallel.tensor * self.parallel.pipe * self.parallel.trail

    @property
    def data_degree(self) -> int:
        """Copies of the model that train on different sequences."""
        return self.world_size // self.model_degree

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one rank in a global step."""
        return self.train.batch_size // (self.train.micro_batch_size * self.data_degree)

    @property
    def splits_trunk(self) -> bool:
        """Whether each trail rank computes the trunk for its share of a micro-batch alone."""
        degrees = self.parallel
        if degrees.trail == 1 or self.trails.fork == "embedding":  # there is nobody to share it with, or no trunk
            return False
        return degrees.trunk == "split" or (
            degrees.trunk == "auto" and self.train.micro_batch_size % degrees.trail == 0
        )

    @property
    def trunk_layers(self) -> int:
        """Blocks that all trails share."""
        return 0 if self.trails.fork == "embedding" else self.model.num_layers - self.trails.layers

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as plain values that JSON and TOML can hold."""
        return {
            name: {entry: plain(getattr(getattr(self, name), entry)) for entry in keys_of(section)}
            for name, section in sections_of(self.family).items()
        }

    def to_toml(self) -> str:
        """The sections as a TOML file which reads back as the same config."""
        tables = []
        for name, values in self.to_dict().items():
            lines = [f"{entry} = {toml_value(value)}" for entry, value in values.items()]
            tables.append("\n".join([f"[{name}]", *lines]))
        return "\n\n".join(tables) + "\n"
