"""Pictures per second of the loader, beside those of a training step, which needs so many.

Everything works on one thread and takes turns round by round, as in speed.py; a ratio is of one round.
"""

import functools
import io
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.setup import build_bench, synchronizer
from benchmarks.timing import Clock, Spread, rotated
from nt_dist.config import Config
from nt_dist.data.loader import StepLoader
from nt_dist.errors import ConfigError
from nt_dist.images.samples import Broken, PictureSamples
from nt_dist.images.settings import Data
from nt_dist.images.sources import Pictures, open_pictures
from nt_dist.parallel.mesh import Mesh

STEP = "training step"
JPEG_SIZE, JPEG_SIDE = (500, 375), 224  # as most of ImageNet is, and what a ResNet-50 reads
_NUM_JPEGS = 16
_A_TASK = 64  # JPEGs that a worker reads at once


@dataclass(frozen=True)
class LoadingReport:
    """Pictures per second, by what is done with them; the training step is one of these."""

    rates: dict[str, Spread]

    @property
    def of_step(self) -> dict[str, Spread]:
        """Each rate over the training step's of the same round."""
        step = self.rates[STEP].rounds
        return {
            name: Spread([each / need for each, need in zip(rate.rounds, step, strict=True)])
            for name, rate in self.rates.items()
        }

    def table(self) -> str:
        """The report as Markdown."""
        lines = ["| | pictures per second: median (range) | of the step's: median (range) |", "|---|---|---|"]
        for name, ratio in self.of_step.items():
            spans = [
                f"{each.median:,{form}} ({min(each.rounds):,{form}}-{max(each.rounds):,{form}})"
                for each, form in ((self.rates[name], ".0f"), (ratio, ".1f"))
            ]
            lines.append(f"| {name} | {' | '.join(spans)} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, list[float]]:
        """Every round of every rate, for JSON."""
        return {name: rate.rounds for name, rate in self.rates.items()}


def measure_loading(config: Config, mesh: Mesh, num_rounds: int, cpu_time: bool = False) -> LoadingReport:
    """Measures the loader of pictures.

    Args:
        config: Its data are read; its model is trained.
        mesh: One rank.
        num_rounds: Rounds, of one batch each.
        cpu_time: Measure time computed, not time passed.

    Raises:
        ConfigError: The config is not one of pictures.
        DataError: The pictures cannot be read.
    """
    if config.family.task != "image-classification":
        raise ConfigError([f"model.family = {config.family.name!r}: the loader of pictures is measured"])
    clock = Clock(synchronizer(mesh.device), time.process_time if cpu_time else time.perf_counter)
    works = _works(config, mesh)
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(num_rounds):
        for name in rotated(list(works), number):
            seconds[name].append(clock.seconds(works[name], 1))
    count = config.train.batch_size
    return LoadingReport({name: Spread([count / each for each in times]) for name, times in seconds.items()})


def measure_workers(num_workers: int, num_rounds: int) -> Spread:
    """How many times as many JPEGs threads read in a second as processes, so many of both: a ratio for each round.

    Processes hand over what they read, as a training would need it. Time passed is measured, in turns.
    """
    spawn, ratios = multiprocessing.get_context("spawn"), []
    with ThreadPoolExecutor(num_workers) as threads, ProcessPoolExecutor(num_workers, spawn) as processes:
        for number in range(-1, num_rounds):  # in the first one, which does not count, the processes begin
            seconds = {}
            for pool in rotated([threads, processes], number):
                start = time.perf_counter()
                for _ in pool.map(_read_jpegs, [_A_TASK] * 2 * num_workers):
                    pass
                seconds[pool] = time.perf_counter() - start
            ratios.append(seconds[processes] / seconds[threads])
    return Spread(ratios[1:])


def _read_jpegs(count: int) -> list[np.ndarray]:
    samples = PictureSamples(_jpegs(count), Data(crop="resized"), JPEG_SIDE, 0, Broken(0.0, count))
    return [samples.drawn(number, number).inputs for number in range(count)]


def _works(config: Config, mesh: Mesh) -> dict[str, Callable[[], object]]:
    """What is measured, by name; each handles ``train.batch_size`` pictures."""
    data, side, count = config.data, config.model.image_size, config.train.batch_size
    stored = open_pictures(data, data.path, "train", Path(config.run.dir) / "data", "data.path", side)
    stored = stored.some(np.arange(count) % len(stored))
    decoded = replace(stored, raw=np.stack([stored.read(index, side) for index in range(count)]))
    width, height = JPEG_SIZE
    return {
        f"decoded once, from {data.source}": lambda: [stored.read(index, side) for index in range(count)],
        f"a batch from memory, {side} pixels, crop {data.crop}": _batches(config, decoded, side, data.crop),
        f"a batch of JPEGs of {width} × {height}, cut and scaled to {JPEG_SIDE}": _batches(
            config, _jpegs(count), JPEG_SIDE, "resized"
        ),
        STEP: build_bench(config, mesh).step,
    }


def _batches(config: Config, pictures: Pictures, side: int, crop: str) -> Callable[[], object]:
    train = config.train
    samples = PictureSamples(pictures, replace(config.data, crop=crop), side, train.seed, Broken(0.0, len(pictures)))
    loader = StepLoader(samples, train.seed, train.batch_size, train.micro_batch_size)
    return lambda: loader.step(0)


def _jpegs(count: int) -> Pictures:
    return Pictures("JPEGs", np.zeros(count, np.int64), (), [_jpeg(seed % _NUM_JPEGS) for seed in range(count)])


@functools.cache
def _jpeg(seed: int) -> bytes:
    """A picture of coloured patches with some noise, which compresses about as a photograph does."""
    generator, (width, height) = np.random.default_rng(seed), JPEG_SIZE
    patches = Image.fromarray(generator.integers(256, size=(12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize(JPEG_SIZE, Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + generator.normal(0, 8, (height, width, 1)).astype(np.int16)
    contents = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(contents, "JPEG", quality=90)
    return contents.getvalue()
