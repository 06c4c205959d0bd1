"""Every setting: its default, what it says, and whether a resume may change it.

A config is a TOML file with one table per section below. This package imports no torch, so that bad input is refused
before anything slow is loaded.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, Literal

from nt_dist.config.keys import (
    FRACTION,
    NOT_EMPTY,
    POSITIVE,
    SECONDS,
    SHARE,
    SPAN,
    Rule,
    at_least,
    free,
    identity,
    keys_of,
    plain,
    schedule,
    toml_value,
)

ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
GROUPS = ("embedding", "output", "trunk")
"""Groups of weights that may have rates of their own, as in ``train.lr_trunk``; those of trails are the plain ones."""
AVERAGE = "average"
"""What the average of a value is called beside its moments; see engine/averaging.py."""
_SHARES = Rule(
    "must be rising numbers in (0, 1)",
    lambda value: list(value) == sorted({*value}) and all(0 < each < 1 for each in value),
)
_BETAS = Rule("must be two numbers in [0, 1)", lambda value: all(0 <= beta < 1 for beta in value))
_OR_NONE = Rule("must be two numbers in [0, 1), or none", lambda value: len(value) in (0, 2) and _BETAS.holds(value))
_SEED = Rule("must be in [0, 2^63)", lambda value: 0 <= value < 2**63)
_LOGGERS = Rule(
    "must be some of tensorboard, wandb, mlflow", lambda value: {*value} <= {"tensorboard", "wandb", "mlflow"}
)
_INSIDE = Rule("must be in (0, 1)", lambda value: 0 < value < 1)
_BELOW_ONE = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True)
class Trails:
    """The ensemble: how many members, and where they part."""

    count: int = identity(3, "Trails (ensemble members).", at_least(1))
    layers: int = identity(4, "Blocks in each trail; the others are the trunk, which all trails share.", at_least(1))
    fork: Literal["blocks", "embedding"] = identity(
        "blocks", 'Where trails part: "blocks", before the last trails.layers, or "embedding" (a full ensemble).'
    )
    final_norm_twice: bool = identity(False, "Apply each trail's final norm twice, as the paper's public code does.")
    joint: float = schedule(0.0, "Weight of the ensemble's own loss, added to train.objective.", at_least(0))
    joint_mean: Literal["logits", "probabilities"] = schedule(
        "logits", "Mean over the trails whose loss trails.joint weighs: logits or probabilities."
    )
    joint_schedule: Literal["constant", "linear"] = schedule(
        "constant", "Course of that weight: constant, or linear (from trails.joint_start to trails.joint at the end)."
    )
    joint_start: float = schedule(0.0, "Weight of the ensemble's own loss before the first step.", at_least(0))

    @property
    def trained_mean(self) -> str:
        """``joint_mean``, or "" where the ensemble has no loss of its own; one trail has none but its loss."""
        weighs = self.joint or (self.joint_schedule == "linear" and self.joint_start)
        return self.joint_mean if weighs and self.count > 1 else ""


@dataclass(frozen=True)
class Sparsity:
    """How many weights are stored, where, and how their topology changes in training."""

    density: float = identity(0.9, "Share of the weights that is stored; 1: dense.", SHARE)
    start_density: float = schedule(0.0, "Density at the start, if it falls from there; 0: as density.", FRACTION)
    density_stages: int = schedule(4, "Prunings of the smallest weights by which the density falls.", at_least(1))
    density_until: float = schedule(0.5, "Share of train.steps after which the density has fallen.", _INSIDE)
    distribution: Literal["erk", "er", "uniform"] = identity(
        "erk", "Density of each weight: erk or er (Erdős–Rényi, with or without kernel sizes) or uniform."
    )
    storage: Literal["auto", "compact", "masked"] = free(
        "auto", "compact (values and index), masked (dense with a mask) or auto (for each weight the smaller)."
    )
    structure: Literal["entries", "groups", "blocks"] = identity(
        "entries",
        "What is stored or not: single entries, or, for less time at low densities, inputs of groups of outputs or "
        "blocks of adjacent ones.",
    )
    group_size: int = identity(
        64,
        "Outputs of a group or block; a block's inputs are the most, up to this, that divide a shard's.",
        at_least(2),
    )
    topology_shards: int = identity(
        8, "Equal shards of each weight, with their own slots and updates; the tensor degree divides it.", at_least(1)
    )
    drop: Literal["soft_magnitude", "magnitude", "set"] = schedule(
        "soft_magnitude",
        "Weights dropped in an update: soft_magnitude (sampled by |w|^temperature), magnitude (the smallest) or set "
        "(smallest positive, largest negative).",
    )
    temperature: float = schedule(3.0, "Exponent T of soft_magnitude.", POSITIVE)
    grow: Literal["gradient", "random"] = schedule(
        "gradient", "Weights regrown: gradient (where the dense gradient is largest) or random."
    )
    drop_fraction: float = schedule(0.5, "Share of a shard's slots replaced in the first update.", SHARE)
    drop_schedule: Literal["cosine", "linear", "constant"] = schedule(
        "cosine", "Course of the dropped share: cosine (to a hundredth), linear or constant."
    )
    update_every: int = schedule(50, "Steps between topology updates; 0: none (static sparse).", at_least(0))
    stop_fraction: float = schedule(1.0, "Share of train.steps after which the topology stays as it is.", FRACTION)
    new_moments: Literal["zero", "gradient", "mean"] = schedule(
        "zero", "AdamW's second moment of a new slot: zero, gradient (the regrowth gradient's) or mean (the shard's)."
    )
    regrow_from: Literal["all", "last_micro_batch"] = schedule(
        "all", "Micro-batches whose dense gradient says where to regrow: all, or last_micro_batch (takes less time)."
    )
    exempt: tuple[str, ...] = identity((), 'Names of weights kept dense, * and ? in them, as in "blocks.*.mlp.*".')

    @property
    def uses_gradients(self) -> bool:
        """Whether there are updates, and they look at dense gradients."""
        return self.update_every > 0 and "gradient" in (self.grow, self.new_moments)


@dataclass(frozen=True)
class Train:
    """The optimization."""

    recipe: Literal["default", "paper"] = free(
        "default", "Defaults of other settings: default (measured best) or paper (the NeuroTrails paper's code)."
    )
    steps: int = schedule(1000, "Optimizer steps.", at_least(1))
    epochs: float = schedule(0.0, "Passes over the training samples, in place of steps; 0: steps says it.", at_least(0))
    tokens: int = schedule(
        0, "Tokens (or pictures) to train on, padding too, in place of steps; 0: steps says it.", at_least(0)
    )
    batch_size: int = schedule(32, "Sequences in a global step.", at_least(1))
    micro_batch_size: int = free(16, "Sequences in one pass on one rank.", at_least(1))
    lr: float = schedule(2e-3, "Highest learning rate.", POSITIVE)
    lr_embedding: float = schedule(1.0, "Learning rate of the first layer's weights, as a factor on lr.", POSITIVE)
    lr_output: float = schedule(1.0, "Learning rate of the last layer's weights, as a factor on lr.", POSITIVE)
    lr_trunk: float = schedule(1.0, "Learning rate of the trunk's blocks, as a factor on lr.", POSITIVE)
    mup_base_hidden: int = schedule(
        0, "Width at which lr was tuned: matrices' rates and initial values go by muP from there; 0: off.", at_least(0)
    )
    warmup_steps: int = schedule(100, "Steps of linear warm-up.", at_least(0))
    lr_schedule: Literal["cosine", "steps", "wsd"] = schedule(
        "cosine",
        "Course of the learning rate after the warm-up: cosine (to min_lr_ratio), steps (at milestones) or wsd "
        "(constant, then linear to min_lr_ratio).",
    )
    min_lr_ratio: float = schedule(0.1, "Last learning rate of cosine and wsd, as a share of the highest.", FRACTION)
    decay_share: float = schedule(0.2, "Share of train.steps, the last, in which wsd falls.", SHARE)
    milestones: tuple[float, ...] = schedule(
        (0.25, 0.5, 0.75), "Shares of train.steps at which steps are taken.", _SHARES
    )
    lr_decay: float = schedule(0.1, "What a step multiplies the learning rate with.", SHARE)
    optimizer: Literal["adamw", "sgd"] = schedule("adamw", "adamw, or sgd (stochastic gradient descent).")
    momentum: float = schedule(0.9, "SGD's momentum; 0: none.", _BELOW_ONE)
    nesterov: bool = schedule(False, "Use Nesterov's momentum in SGD.")
    betas: tuple[float, float] = schedule((0.9, 0.999), "Adam's two decay rates.", _BETAS)
    betas_embedding: tuple[float, ...] = schedule((), "Those of the first layer's weights; none: betas.", _OR_NONE)
    betas_output: tuple[float, ...] = schedule((), "Those of the last layer's weights; none: betas.", _OR_NONE)
    betas_trunk: tuple[float, ...] = schedule((), "Those of the trunk's blocks; none: betas.", _OR_NONE)
    adam_eps: float = schedule(1e-8, "Adam's epsilon.", POSITIVE)
    weight_decay: float = schedule(
        0.0, "Weight decay of the matrices: decoupled in AdamW, in the gradient in SGD.", at_least(0)
    )
    weight_decay_embedding: float = schedule(
        1.0, "Weight decay of the first layer's weights, as a factor on weight_decay.", at_least(0)
    )
    weight_decay_output: float = schedule(
        1.0, "Weight decay of the last layer's weights, as a factor on weight_decay.", at_least(0)
    )
    weight_decay_trunk: float = schedule(
        1.0, "Weight decay of the trunk's blocks, as a factor on weight_decay.", at_least(0)
    )
    decay_vectors: bool = schedule(False, "Let norms and biases decay too.")
    objective: Literal["sum", "mean"] = schedule("sum", "What is minimised: the sum or the mean of the trails' losses.")
    label_smoothing: float = schedule(0.0, "Share of each target that all classes have alike.", _BELOW_ONE)
    grad_clip: float = schedule(0.0, "Largest norm of the gradient; 0: no clipping.", at_least(0))
    on_spike: Literal["off", "warn", "skip", "rollback"] = free(
        "warn",
        "What a loss or gradient norm far outside its recent spread does: warn; skip (the step changes nothing); "
        "rollback (to the last checkpoint, going on without that step's samples); off (nothing is judged).",
    )
    spike_window: int = free(100, "Steps whose losses and norms are the recent spread.", at_least(8))
    spike_sigma: float = free(10.0, "Robust standard deviations above the median that make a spike.", POSITIVE)
    max_bad_steps: int = free(
        10, "Steps in a row that may be skipped or rolled back (no number, spike); one more ends the run.", at_least(0)
    )
    average_decay: float = schedule(
        0.0,
        "Decay of the average of the weights that evaluations and exports take: 0, none; below 1, an exponential one; "
        "1, the plain mean.",
        FRACTION,
    )
    average_from: float = schedule(0.75, "Share of train.steps after which the average begins.", _BELOW_ONE)
    seed: int = schedule(0, "Seed of initial values, topologies and the order of samples.", _SEED)
    precision: Literal["fp32", "bf16"] = free("fp32", "fp32, or bf16 with fp32 masters and gradients.")
    tf32: bool = free(False, "Let GPUs round the factors of fp32 products to TF32's 10 bits, which is faster.")
    activation_checkpointing: bool = free(False, "Compute each block again in backward to save memory.")
    keep_dense: bool = free(False, "Build dense copies of compact weights once a step: more memory, fewer kernels.")
    compile: bool = free(
        False, "Compile model and loss into one graph (torch.compile), at the first step: fewer and larger kernels."
    )

    @property
    def moments(self) -> tuple[str, ...]:
        """What is kept of each value beside it: by torch's names what the optimizer needs, and the average if any."""
        of_sgd = ("momentum_buffer",) if self.momentum > 0 else ()
        average = (AVERAGE,) if self.average_decay > 0 else ()
        return (*(ADAMW_MOMENTS if self.optimizer == "adamw" else of_sgd), *average)


@dataclass(frozen=True)
class Parallel:
    """The degrees of the mesh; the data degree is what the number of ranks leaves."""

    tensor: int = free(1, "Ranks that share each matrix.", at_least(1))
    pipe: int = free(1, "Stages of the pipeline.", at_least(1))
    trail: int = free(1, "Ranks that share the trails.", at_least(1))
    trunk: Literal["auto", "split", "replicated"] = free(
        "auto",
        "How trail ranks compute the trunk: split (each for its share of the micro-batch), replicated (each for all of "
        "it) or auto (split where parallel.trail divides train.micro_batch_size).",
    )
    sequence_parallel: bool = free(
        False,
        "Whether tensor ranks part the positions of each text between matrices, instead of all holding all: this takes "
        "less memory, and sends a quarter more.",
    )


@dataclass(frozen=True)
class Run:
    """The run's folder and how often things happen; none of it changes what is trained."""

    dir: str = free("runs/default", "Folder of the run; one that holds a checkpoint is continued.", NOT_EMPTY)
    log_every: int = free(10, "Steps between lines of metrics.", at_least(1))
    eval_every: int = free(500, "Steps between evaluations; 0: at the end only.", at_least(0))
    eval_batches: int = free(20, "Batches of train.batch_size sequences in an evaluation; 0: all.", at_least(0))
    check_every: int = free(
        100, "Steps between checks of copies (weights, topologies, moments) and their numbers; 0: never.", at_least(0)
    )
    save_every: int = free(500, "Steps between checkpoints; 0: at the end only.", at_least(0))
    keep: int = free(2, "Newest checkpoints kept.", at_least(1))
    keep_every: int = free(0, "Keep also each checkpoint whose step is a multiple of this; 0: none.", at_least(0))
    async_save: bool = free(True, "Write checkpoints beside the training, from host memory; a run waits for its last.")
    save_patience: float = free(
        300.0,
        "Seconds for which a last save is tried again while the disk refuses it, and after which another one is; 0: "
        "neither.",
        SECONDS,
    )
    resume_from: str = free("", "Checkpoint to start from where run.dir has none; empty: from the beginning.")
    stop_after: int = free(0, "Save and leave after this step, in the schedules of train.steps; 0: off.", at_least(0))
    allow_schedule_change: bool = free(False, "Resume although schedule settings differ from the checkpoint's.")
    stall_timeout: float = free(
        45.0,
        "Seconds without a sign of life after which a rank stands still and the job is ended; five times the longest "
        "step where that is more; 0: nobody watches.",
        SECONDS,
    )
    loggers: tuple[str, ...] = free(
        ("tensorboard",), "Where curves go beside metrics.jsonl: some of tensorboard, wandb, mlflow.", _LOGGERS
    )
    profile: str = free("", "Steps of which torch.profiler writes a profile, as 10:12; empty: none.", SPAN)
    phase_timeout: float = free(
        1800.0,
        "Seconds that building, a first step, or waiting for ranks that load or save may take before it counts as one.",
        Rule("must be in (0, 10^8]", lambda value: 0 < value <= 1e8),
    )


def sections_of(family: Any) -> dict[str, type]:
    """All sections of a config of a family, in the order in which they are shown."""
    shared = {"trails": Trails, "sparsity": Sparsity, "train": Train, "parallel": Parallel, "run": Run}
    order = ("model", "trails", "sparsity", "data", "train", "parallel", "run")
    return {name: (shared | family.sections)[name] for name in order}


def settings_of(family: Any) -> dict[str, Field]:
    """All settings of a family by section.key."""
    sections = sections_of(family).items()
    return {f"{name}.{entry}": setting for name, section in sections for entry, setting in keys_of(section).items()}


@dataclass(frozen=True)
class Config:
    """A whole, checked configuration: the TOML's sections and the DeepSpeed JSON that goes with them."""

    family: Any  # the nt_dist.config.family.Family: what kind of network is trained
    model: Any  # the family's own section, as ``data`` is
    trails: Trails
    sparsity: Sparsity
    data: Any
    train: Train
    parallel: Parallel
    run: Run
    deepspeed: dict[str, Any] = field(hash=False)  # DeepSpeed's configuration, every "auto" filled in
    world_size: int
    whole: "Config | None" = field(default=None, compare=False)  # the run's, where this is of a stage: see stages.py

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
    def cuts_sequence(self) -> bool:
        """Whether each tensor rank holds its share of the positions of hidden states between matrices."""
        return self.parallel.sequence_parallel and self.parallel.tensor > 1

    @property
    def splits_trunk(self) -> bool:
        """Whether each trail rank computes the trunk for its share of a micro-batch alone."""
        degrees = self.parallel
        if degrees.trail == 1 or self.trails.fork == "embedding":  # there is nobody to share it with, or no trunk
            return False
        divides = self.train.micro_batch_size % (degrees.trail * self.family.batch_unit(self)) == 0
        return degrees.trunk == "split" or (degrees.trunk == "auto" and divides)

    def joint_weight(self, step: int) -> float | None:
        """Weight of the ensemble's own loss beside the sum of the trails' in a step, from 1; None: it has none."""
        trails = self.trails
        if not trails.trained_mean:
            return None
        start = trails.joint if trails.joint_schedule == "constant" else trails.joint_start
        weight = start + (trails.joint - start) * step / self.train.steps
        return weight * (trails.count if self.train.objective == "mean" else 1)

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
        tables = [
            "".join([f"[{name}]\n", *(f"{entry} = {toml_value(value)}\n" for entry, value in values.items())])
            for name, values in self.to_dict().items()
        ]
        return "\n".join(tables)


def by_key(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of sections by section.key."""
    return {f"{name}.{entry}": value for name, values in sections.items() for entry, value in values.items()}
