"""What an ensemble costs when it is used: reading a prompt, and writing token by token, against dense models.

Contenders are exported models with weights as drawn, in one process, in turns round by round in rotating order, as in
speed.py. The single dense model has one trail's depth and width; the full ensemble has nothing in common; NeuroTrails
has the config's trunk, once with dense matrices (whose zeros are multiplied as well, so that the density does not
matter) and at each density with the products that `from_sparse` finds fastest for one token.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.timing import Clock, Spread, rotated
from nt_dist.config import Config
from nt_dist.export.hf.modeling_neurotrails import NeuroTrailsForCausalLM
from nt_dist.export.hf.sparse_neurotrails import FILE, SparseLinear, save_sparse
from nt_dist.export.huggingface import to_transformers
from nt_dist.families import make_config
from nt_dist.model.trails import build_model

SINGLE, FULL, DENSE = "single dense model", "full dense ensemble", "NeuroTrails, dense matrices"


@dataclass(frozen=True)
class Contender:
    """One model and what it holds.

    Attributes:
        model: The exported model.
        file_bytes: Of its weights on a disk.
        sparse_matrices: How many of its matrices are held as bitmaps, of how many.
    """

    model: NeuroTrailsForCausalLM
    file_bytes: int
    sparse_matrices: tuple[int, int]

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, indices included."""
        sparse = sum(each.num_bytes for each in self.model.modules() if isinstance(each, SparseLinear))
        return sparse + sum(each.nbytes for each in self.model.parameters())


@dataclass(frozen=True)
class Measured:
    """What one contender took.

    Attributes:
        prompt: Tokens a second while reading a prompt.
        steps: Tokens a second while writing, one token a pass.
        weight_bytes: Memory of the weights.
        cache_bytes: Memory of the keys and values after the last step.
        file_bytes: Of the weights on a disk.
        sparse_matrices: Held as bitmaps, of how many.
    """

    prompt: Spread
    steps: Spread
    weight_bytes: int
    cache_bytes: int
    file_bytes: int
    sparse_matrices: tuple[int, int]


@dataclass(frozen=True)
class InferenceReport:
    """What :func:`measure_inference` found, by contender's name."""

    by_name: dict[str, Measured]

    def table(self) -> str:
        """The report for a terminal, and as Markdown."""
        single = self.by_name[SINGLE]
        lines = [
            "| | prompt, tokens/s | of single: median (range) | writing, tokens/s | of single: median (range) "
            "| weights, MB | keys and values, MB | file, MB | sparse matrices |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, each in self.by_name.items():
            ratios = [
                Spread([ours / theirs for ours, theirs in zip(one.rounds, other.rounds, strict=True)])
                for one, other in ((each.prompt, single.prompt), (each.steps, single.steps))
            ]
            sizes = [f"{size / 1e6:.1f}" for size in (each.weight_bytes, each.cache_bytes, each.file_bytes)]
            speed = [f"{each.prompt.median:,.0f}", ratios[0], f"{each.steps.median:,.1f}", ratios[1]]
            of = "{} of {}".format(*each.sparse_matrices)
            lines.append(f"| {' | '.join(map(str, [name, *speed, *sizes, of]))} |")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Every round of every figure, for JSON."""
        return {
            name: {**vars(each), "prompt": each.prompt.rounds, "steps": each.steps.rounds}
            for name, each in self.by_name.items()
        }


def measure_inference(
    config: Config,
    densities: list[float],
    *,
    num_rounds: int,
    prompt: int,
    num_steps: int,
    cpu_time: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> InferenceReport:
    """Measure reading and writing of one sequence on the CPU, in fp32.

    Args:
        config: Sizes, trunk and trails.
        densities: Of the sparse contenders.
        num_rounds: Each contender reads one prompt and writes once in every round.
        prompt: Tokens of the prompt.
        num_steps: Tokens written after it.
        cpu_time: Take the time that this process computes, on one thread, in place of what passes: on a machine that
            does other work as well, the two have little to do with each other.
        progress: Told of every round.
    """
    contenders = {
        SINGLE: _dense(config, trails={"count": 1}),
        FULL: _dense(config, trails={"fork": "embedding"}),
        DENSE: _dense(config),
        **{f"NeuroTrails, density {density:g}": _sparse(config, density) for density in densities},
    }
    tokens = torch.randint(config.model.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
    clock = Clock(lambda: None, time.process_time if cpu_time else time.perf_counter)
    seconds = {name: ([], []) for name in contenders}
    cache_bytes = {}
    for number in range(num_rounds + 1):
        for name in rotated(list(contenders), number):
            turn = _Turn(contenders[name].model, tokens)
            took = clock.seconds(turn.read, 1), clock.seconds(turn.write, num_steps)
            if number:  # the first round warms up
                for kept, each in zip(seconds[name], took, strict=True):
                    kept.append(each)
            cache_bytes[name] = turn.cache_bytes()
        progress(f"round {number} of {num_rounds}" if number else "warmed up")
    return InferenceReport(
        {
            name: Measured(
                prompt=Spread([prompt / each for each in seconds[name][0]]),
                steps=Spread([num_steps / each for each in seconds[name][1]]),
                weight_bytes=contender.weight_bytes,
                cache_bytes=cache_bytes[name],
                file_bytes=contender.file_bytes,
                sparse_matrices=contender.sparse_matrices,
            )
            for name, contender in contenders.items()
        }
    )


class _Turn:
    """One sequence: its prompt is read, then it is written on."""

    def __init__(self, model: NeuroTrailsForCausalLM, tokens: torch.Tensor):
        self.model, self.tokens, self.cache = model, tokens, None

    @torch.no_grad()
    def read(self) -> None:
        """Pass the prompt at once."""
        self._pass(self.tokens)

    @torch.no_grad()
    def write(self) -> None:
        """Pass one token, the likeliest after those before."""
        self._pass(self.next)

    def _pass(self, tokens: torch.Tensor) -> None:
        answer = self.model(tokens, cache=self.cache, use_cache=True, logits_to_keep=1)
        self.cache, self.next = answer.cache, answer.logits[:, -1:].argmax(-1)

    def cache_bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(each.keys.nbytes + each.values.nbytes for each in self.cache.layers)


def changed(config: Config, density: float, **sections: dict) -> Config:
    """A config of another density, in fp32, of dense tensors; ``sections`` change more of it."""
    merged = config.to_dict()
    merged["sparsity"] |= {"density": density, "storage": "masked"}
    for name, values in sections.items():
        merged[name] |= values
    merged["train"] |= {"precision": "fp32"}
    return make_config(merged)


def _model(config: Config) -> NeuroTrailsForCausalLM:
    return to_transformers(build_model(config).requires_grad_(False), config)


def _dense(config: Config, **sections: dict) -> Contender:
    model = _model(changed(config, 1.0, **sections))
    return Contender(model, sum(each.nbytes for each in model.parameters()), (0, _num_matrices(model)))


def _sparse(config: Config, density: float) -> Contender:
    with TemporaryDirectory() as folder:
        model = _model(changed(config, density))
        model.config.save_pretrained(folder)
        save_sparse(model, Path(folder))
        size = (Path(folder) / FILE).stat().st_size
        found = NeuroTrailsForCausalLM.from_sparse(folder)
    count = sum(isinstance(each, SparseLinear) for each in found.modules())
    return Contender(found, size, (count, _num_matrices(model)))


def _num_matrices(model: NeuroTrailsForCausalLM) -> int:
    return sum(isinstance(each, torch.nn.Linear) for each in model.modules())
