"""What reading a matrix as a bitmap saves where text is written a token at a time, against torch's dense fp32 products.

First single products with one vector, of matrices that are read one after the other, 400 MB of them, so that none is
still in a cache when its turn comes again, as in a model; then whole models as tools/generate.py computes with them.
Contenders take turns, round by round in rotating order, as in speed.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.inference import FULL, SINGLE, changed
from benchmarks.timing import Clock, Spread, rotated
from nt_dist.config import Config
from nt_dist.inference.sparse import BitmapLinear, hold_sparse
from nt_dist.kernels.bitmap import PATHS, Bitmap, fastest_path
from nt_dist.llama.layers import Cache, step
from nt_dist.model.trails import TrailsModel, build_model

SHAPE = (2048, 5504)
STREAM = 400_000_000  # bytes
TORCH = "torch, fp32"
_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class DecodingReport:
    """What :func:`measure_decoding` found.

    Attributes:
        products: By density and contender, a bitmap's time over torch's of the same round.
        tokens: By model, tokens a second.
        held: By model, how many of its layers multiply with bitmaps, of how many.
        weight_bytes: By model, of its matrices.
    """

    products: dict[float, dict[str, Spread]]
    tokens: dict[str, Spread]
    held: dict[str, tuple[int, int]]
    weight_bytes: dict[str, int]

    def table(self) -> str:
        """The report for a terminal, and as Markdown."""
        names = list(next(iter(self.products.values())))
        lines = [f"| density | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
        for density, found in self.products.items():
            lines.append(f"| {density:g} | {' | '.join(str(each) for each in found.values())} |")
        lines += [
            "",
            "| | tokens/s | of single: median (range) | of full ensemble: median (range) | matrices, MB | bitmaps |",
            "|---|---|---|---|---|---|",
        ]
        for name, each in self.tokens.items():
            ratios = [over(each, self.tokens[other]) for other in (SINGLE, FULL)]
            of, size = "{} of {}".format(*self.held[name]), f"{self.weight_bytes[name] / 1e6:.1f}"
            lines.append(f"| {name} | {each.median:.1f} | {ratios[0]} | {ratios[1]} | {size} | {of} |")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Every round of every figure, for JSON."""
        products = {
            f"{density:g}": {name: each.rounds for name, each in found.items()}
            for density, found in self.products.items()
        }
        return {
            "products": products,
            "tokens": {name: each.rounds for name, each in self.tokens.items()},
            "held": self.held,
            "weight_bytes": self.weight_bytes,
        }


def over(one: Spread, other: Spread) -> Spread:
    """Ratios of the same rounds."""
    return Spread([ours / theirs for ours, theirs in zip(one.rounds, other.rounds, strict=True)])


def measure_decoding(
    config: Config,
    densities: list[float],
    clock: Clock,
    *,
    num_rounds: int,
    num_steps: int,
    shape: tuple[int, int] = SHAPE,
    stream: int = STREAM,
    progress: Callable[[str], None] = lambda line: None,
) -> DecodingReport:
    """Measure products and writing on the CPU.

    Args:
        config: Sizes, trunk and trails of the models.
        densities: Of products, and of the sparse models.
        clock: Takes the time.
        num_rounds: Turns of each contender.
        num_steps: Tokens that a model writes in a turn.
        shape: Of the matrices of single products.
        stream: Bytes of the matrices that each contender reads in a turn.
        progress: Told what is being measured.
    """
    products = {}
    for density in densities:
        progress(f"products at density {density:g}")
        seconds = _take_turns(_products(density, shape, stream), clock, num_rounds)
        torch_took = seconds.pop(TORCH)
        products[density] = {name: over(each, torch_took) for name, each in seconds.items()}
    models, held, weight_bytes = {}, {}, {}
    for name, (each, dtype) in _models(config, densities).items():
        progress(f"making {name}")
        model = build_model(each).eval().requires_grad_(False)
        count = 0 if dtype is None else hold_sparse(model, dtype)
        models[name] = _Writer(model, num_steps)
        matrices = [each for each in model.modules() if hasattr(each, "lay_out")]
        held[name] = count, len(matrices)
        weight_bytes[name] = sum(
            each.matrices.num_bytes if isinstance(each, BitmapLinear) else each.weight.values.nbytes
            for each in matrices
        )
    progress("writing")
    seconds = _take_turns(models, clock, num_rounds)
    tokens = {name: Spread([num_steps / each for each in spread.rounds]) for name, spread in seconds.items()}
    return DecodingReport(products, tokens, held, weight_bytes)


def _take_turns(contenders: dict[str, Callable[[], None]], clock: Clock, num_rounds: int) -> dict[str, Spread]:
    """Return the seconds of each contender's call, by round, divided by its ``times``."""
    seconds = {name: [] for name in contenders}
    for number in range(num_rounds + 1):
        for name in rotated(list(contenders), number):
            work = contenders[name]
            if isinstance(work, _Writer):
                work.begin()
            took = clock.seconds(work, 1) / getattr(work, "times", 1)
            if number:  # the first round warms up
                seconds[name].append(took)
    return {name: Spread(each) for name, each in seconds.items()}


class _Stream:
    """Products of one vector with one matrix after the other."""

    def __init__(self, multiply: Callable, matrices: list):
        self.multiply, self.matrices, self.times = multiply, matrices, len(matrices)

    @torch.no_grad()
    def __call__(self) -> None:
        for each in self.matrices:
            self.multiply(each)


def _products(density: float, shape: tuple[int, int], stream: int) -> dict[str, _Stream]:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(1, *shape, generator=generator) * (torch.rand(1, *shape, generator=generator) < density)
    x = torch.randn(1, 1, shape[1], generator=generator)
    copies = [dense[0].clone() for _ in range(max(1, stream // dense.nbytes))]
    found = {TORCH: _Stream(lambda weight: F.linear(x[0], weight), copies)}
    for name, dtype in _TYPES.items():
        first = Bitmap.of(dense.to(dtype))
        held = [first, *(Bitmap.of(dense.to(dtype)) for _ in range(stream // first.num_bytes - 1))]
        for path in PATHS[PATHS.index(fastest_path()) : 0 : -1]:
            found[f"{path}, {name}"] = _Stream(lambda each, path=path: each.multiply(x, path), held)
    return found


class _Writer:
    """A model that writes: its turn goes on from a prompt of one token."""

    def __init__(self, model: TrailsModel, num_steps: int):
        self.model, self.num_steps = model, num_steps

    def begin(self) -> None:
        """Read the prompt."""
        self.cache = Cache()
        self._pass(torch.zeros(1, 1, dtype=torch.int64))

    @torch.no_grad()
    def __call__(self) -> None:
        """Write so many tokens, each the likeliest."""
        for _ in range(self.num_steps):
            self._pass(self.next)

    def _pass(self, tokens: torch.Tensor) -> None:
        logits = step(self.model, tokens, self.cache)[:, :, -1]
        self.next = logits.log_softmax(-1).logsumexp(0).argmax(-1, keepdim=True)


def _models(config: Config, densities: list[float]) -> dict[str, tuple[Config, torch.dtype | None]]:
    """Configs by contender's name, and the type of held values; None for torch's dense products."""
    single, full = (changed(config, 1.0, trails=sections) for sections in ({"count": 1}, {"fork": "embedding"}))
    bf16, fp32 = torch.bfloat16, torch.float32
    found = {SINGLE: (single, None), f"{SINGLE}, bf16": (single, bf16)}
    found |= {FULL: (full, None), f"{FULL}, bf16": (full, bf16)}
    for density in densities:
        each, name = changed(config, density), f"NeuroTrails, density {density:g}"
        found |= {f"{name}, dense matrices": (each, None), f"{name}, fp32": (each, fp32), f"{name}, bf16": (each, bf16)}
    return found
