"""A tiny run in any layout, and what it did, in a form that knows no layout. For the tests of layouts."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch

from nt_dist.checkpoint.checkpoint import load, save
from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.config import Config
from nt_dist.data.loader import Batch, StepLoader
from nt_dist.data.mixture import Mixture
from nt_dist.engine.averaging import average_weights, averaged
from nt_dist.engine.engine import build_engine, train_step
from nt_dist.engine.optimizer_state import optimizer_state
from nt_dist.engine.pipeline import build_mesh_model
from nt_dist.evaluation.evaluate import evaluate
from nt_dist.evaluation.topology import trail_overlap
from nt_dist.families import make_config
from nt_dist.model.chunks import LOGITS_AT_ONCE
from nt_dist.model.trails import weights_of
from nt_dist.parallel.mesh import init_mesh
from nt_dist.text.indexed import MASK, IndexedTokens, write_indexed, write_mask
from nt_dist.text.samples import TextSamples
from nt_dist.training.topology_updates import TopologyUpdater

STEPS, BATCH, MICRO_BATCH, SEQUENCE = 7, 12, 6, 8  # two and three trail ranks can split a micro-batch
VOCABULARY = 29  # padded to 32: the last shard is short
STATE = ("value", "exp_avg", "exp_avg_sq", "average")


@dataclass(frozen=True)
class Layout:
    """Degrees, stage and precision; the number of ranks follows with ``data``."""

    tensor: int = 1
    pipe: int = 1
    trail: int = 1
    data: int = 1
    stage: int = 0
    precision: str = "fp32"
    ragged: bool = False
    storage: str = "auto"
    trunk: str = "auto"
    joint: str = ""  # the mean that has a loss of its own
    structure: str = "entries"
    sequence: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipe * self.trail * self.data

    def __str__(self) -> str:
        names = ("tensor", "pipe", "trail", "data")
        words = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 1]
        words += [f"{self.trunk} trunk"] if self.trunk != "auto" else []
        words += [f"ZeRO {self.stage}"] if self.stage else []
        words += [self.precision, *["rows"] * self.ragged]
        words += [f"joint {self.joint}"] if self.joint else []
        words += ["sequence"] * self.sequence
        return ", ".join([*words, self.structure] if self.structure != "entries" else words)


def joint_settings(mean: str) -> dict:
    """An ensemble's loss that loses weight over the steps."""
    return {"joint": 0.2, "joint_mean": mean, "joint_schedule": "linear", "joint_start": 1.2}


def config_of(layout: Layout) -> Config:
    """Two layers, one of them in six trails, clipped, updated after steps 2, 4 and 6."""
    model = {"hidden_size": 16, "ffn_size": 24, "num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
    train = {
        "recipe": "paper",
        "steps": STEPS,
        "batch_size": BATCH,
        "micro_batch_size": MICRO_BATCH,
        "lr": 3e-3,
        "warmup_steps": 2,
    }
    train |= {"adam_eps": 1e-4, "weight_decay": 0.1, "grad_clip": 0.5, "precision": layout.precision}
    train |= {"weight_decay_output": 2.0, "betas_embedding": [0.8, 0.99], "betas_trunk": [0.85, 0.999]}
    train |= {"lr_embedding": 2.0, "lr_output": 0.5, "lr_trunk": 1.5, "average_decay": 0.7, "average_from": 0.3}
    train |= {"mup_base_hidden": 8} if layout.precision == "fp32" else {}  # with it norms jump, by rounding
    train |= {"label_smoothing": 0.1} if layout.joint else {}
    train |= {"keep_dense": layout.stage in (1, 2) and layout.precision == "fp32"}  # one rank's has stage 0
    sections = {
        "model": model | {"vocab_size": VOCABULARY, "max_seq_len": SEQUENCE},
        "trails": {"count": 6, "layers": 1, **(joint_settings(layout.joint) if layout.joint else {})},
        "sparsity": {
            "density": 0.4,
            "topology_shards": 2,
            "update_every": 2,
            "storage": layout.storage,
            "structure": layout.structure,
            "group_size": 5,
        },
        "train": train,
        "parallel": {
            "tensor": layout.tensor,
            "pipe": layout.pipe,
            "trail": layout.trail,
            "trunk": layout.trunk,
            "sequence_parallel": layout.sequence,
        },
    }
    return make_config(sections, {"zero_optimization": {"stage": layout.stage}}, layout.ranks)


def batches_of(number: int, rank: int, degree: int, ragged: bool) -> list[Batch]:
    """One data rank's micro-batches of global batch ``number``; ragged ones have rows of 2 to 8 tokens."""
    generator = torch.Generator().manual_seed(number)
    rows = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=generator)
    lengths = torch.randint(2, SEQUENCE + 1, (BATCH,), generator=generator) if ragged else torch.tensor([SEQUENCE])
    weights = (torch.arange(SEQUENCE) < lengths[:, None]).float().expand(BATCH, -1)
    mine = slice(rank * BATCH // degree, (rank + 1) * BATCH // degree)
    parts = zip(rows[mine].split(MICRO_BATCH), weights[mine].split(MICRO_BATCH), strict=True)
    return [Batch(part[:, :-1], part[:, 1:], weight) for part, weight in parts]


def rows_from(step: int, rank: int, degree: int) -> Iterator[list[Batch]]:
    """One data rank's steps after ``step``: prepared documents of 2 to 12 tokens, one a row, cut and padded, of two
    sources, one of which is gone over again, and one has conversations: only some of its tokens count."""
    generator, parts = torch.Generator().manual_seed(0), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, count in (("short", BATCH), ("long", 4 * BATCH)):
            lengths = torch.randint(2, 13, (count,), generator=generator)
            tokens = torch.randint(VOCABULARY, (int(lengths.sum()),), generator=generator)
            write_indexed(Path(folder) / name, VOCABULARY, [(tokens.numpy(), lengths.numpy())])
            if name == "long":
                write_mask(Path(folder) / f"{name}{MASK}", [torch.rand(len(tokens), generator=generator).numpy() < 0.5])
            parts[name] = TextSamples(IndexedTokens(Path(folder) / name), "rows", SEQUENCE, VOCABULARY)
        assert parts["long"].indexed.is_masked
        samples = Mixture(parts, {"short": 0.3, "long": 0.7})
        yield from iter(StepLoader(samples, 0, BATCH, MICRO_BATCH, rank, degree, step * BATCH))


@dataclass
class Record:
    """What a run did, as one rank saw it.

    Attributes:
        losses: Each trail's, by step; after them the ensemble's own, if it has one.
        norms: By step.
        checksums: Of the topology, from the start on.
        updates: Replaced slots and their share.
        evaluation: At the end.
        overlap: Of the trails' topologies, at the end.
        slots: (weight, trail, shard) -> [5, slots]: positions, values, moments and averages of what is held at the end.
    """

    losses: list = field(default_factory=list)
    norms: list = field(default_factory=list)
    checksums: list = field(default_factory=list)
    updates: list = field(default_factory=list)
    evaluation: dict = field(default_factory=dict)
    overlap: float = 0.0
    slots: dict = field(default_factory=dict)


class Run:
    """One rank's part of a run."""

    def __init__(self, layout: Layout):
        self.layout, self.config = layout, config_of(layout)
        self.mesh = init_mesh(self.config)
        self.model = build_mesh_model(self.config, self.mesh)
        self.weights = weights_of(self.model)
        self.engine = build_engine(self.config, self.model, self.mesh)
        self.state = optimizer_state(self.engine)
        self.state.create()
        self.updater = TopologyUpdater(self.config, self.mesh, self.model, self.state, self.engine)
        self.record, self.step = Record(), 0

    def train(self, last: int) -> "Run":
        record, axis = self.record, self.mesh.data
        record.checksums.append(self.updater.check("loading" if self.step else "the start"))
        rows = rows_from(self.step, axis.rank, axis.degree) if self.layout.ragged else None
        for step in range(self.step + 1, last + 1):
            batches = next(rows) if rows else batches_of(step, axis.rank, axis.degree, False)
            result = train_step(self.engine, self.config, self.mesh, batches, step, self.updater.collects_at(step))
            assert result.applied
            average_weights(self.config, self.model, self.state, step)
            record.losses.append([*result.loss_per_trail, *([result.joint_loss] if self.layout.joint else [])])
            record.norms.append(result.grad_norm)
            if self.updater.updates_at(step):
                record.updates.append((*self.updater.update(step), self.updater.density))
                record.checksums.append(self.updater.check(f"the update at step {step}"))
        self.step = last
        return self

    def finish(self) -> Record:
        """Evaluate, and read out what this rank holds."""
        axis = self.mesh.data
        batches = batches_of(1000, axis.rank, axis.degree, True)
        with averaged(self.model, self.state):
            figures = evaluate(self.model, batches, self.mesh, self.config)
        trails = {f"ppl of trail {trail}": each for trail, each in enumerate(figures.pop("ppl_trails"))}
        self.record.evaluation = figures | trails
        self.record.overlap = trail_overlap(self.weights.values(), self.mesh).jaccard
        for name, weight in self.weights.items():
            slots = [weight.to_slots(each).float() for each in self.state.read(weight).values()]
            positions = weight.slot_positions().float()
            for trail in weight.trails:
                for shard in weight.shards:
                    parts = [weight.fragment(each, trail, shard) for each in (positions, *slots)]
                    self.record.slots[name, trail, shard] = torch.stack(parts)
        return self.record

    def save(self, folder: Path) -> Path:
        progress = TrainingState(self.step, BATCH * self.step, self.state.step, "abc", {})
        return save(folder, self.config, self.mesh, self.model, self.state, progress)

    def load(self, path: Path) -> "Run":
        self.step = load(path, self.config, self.mesh, self.model, self.state).step
        return self


def train_whole(rank: int, world_size: int, layout: Layout) -> Record:
    """A whole run of one rank, for run_distributed; where there are several in fp32, their losses come in chunks."""
    at_once = {"cpu": 2000 if world_size > 1 and layout.precision == "fp32" else LOGITS_AT_ONCE["cpu"]}
    with mock.patch.dict(LOGITS_AT_ONCE, at_once):
        return Run(layout).train(STEPS).finish()
