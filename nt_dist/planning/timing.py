"""An estimate of a step's time, to order layouts by; nothing overlaps, as DeepSpeed's overlap_comm is off by default.

    step      = (A + P - 1) · m + data + optimizer + update / update_every
    bubble    = (P - 1) / (A + P - 1)                             (Narayanan et al., arXiv 2104.04473, section 2.2)
    m         = max(products + matrices, launches) + exchange, of the stage that takes longest, for one micro-batch
    products  = 3 F / (rate · COMPUTE_SHARE), 4 F with activation checkpointing, F the forward operations of the stage
    matrices  = bytes / (bandwidth · MEMORY_SHARE): a compact weight is zeroed and scattered into twice, by an index
                made int64 (2 · (c e + (20 + 2 c) k) for e entries and k slots), its gradient gathered ((4 + 2 c) k); a
                masked one's is multiplied (2 c e + e); with train.keep_dense a step builds once
    launches  = LAUNCH · kernels of the whole model's micro-batch (model/counts.py) · the stage's share of the layers; 0
                with train.compile. What they add to products and matrices is called idle
    optimizer = bytes / (bandwidth · MEMORY_SHARE): master and moments are read and written and the gradient is read
                (AdamW: 28 bytes a value that the rank steps), and the compute copy is written
    exchange, data, update: for each axis and operation, what a ring sends / (bandwidth · LINK_SHARE) + LATENCY ·
                calls · log2(ranks); NVLink where the axis' ranks lie in one node, else the network

A micro-batches of a step, P stages. The update's own work on the GPU is left out.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from nt_dist.config import Config
from nt_dist.config.settings import Parallel
from nt_dist.model.counts import count_micro_batch
from nt_dist.planning.communication import Payload, sent_bytes, step_payload, update_payload
from nt_dist.planning.gpus import COMPUTE_SHARE, LATENCY, LAUNCH, LINK_SHARE, MEMORY_SHARE, NODE, Gpu
from nt_dist.planning.local_layers import layer_parts, local_parts, stage_layers
from nt_dist.sparsity.storages import STORAGES

AXES = ("tensor", "trail", "data", "pipe")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of the slowest stage and what they are made of, and the bytes that a rank of it sends."""

    products: float  # of matrices, over all micro-batches
    matrices: float  # building dense ones and gathering their gradients
    idle: float  # in which the GPU waits for kernels to be launched
    exchange: float  # over the tensor, trail and pipe axes
    waiting: float  # what the pipeline's bubble adds
    data: float  # over the data axis
    optimizer: float
    update: float  # the share of a topology update that falls on each step, its exchange only
    sent: dict[str, float]  # bytes in an ordinary step, by axis
    update_sent: float  # bytes in an update
    bubble: float  # share of the pipeline's time in which a stage waits

    @property
    def total(self) -> float:
        """Seconds of a step."""
        work = self.products + self.matrices + self.idle + self.exchange + self.waiting
        return work + self.data + self.optimizer + self.update


def step_time(config: Config, gpu: Gpu) -> StepTime:
    """Estimate the time of a step in the layout of ``config``."""
    times = (_stage_time(config, gpu, stage) for stage in range(config.parallel.pipe))
    return max(times, key=lambda time: time.total)


def _stage_time(config: Config, gpu: Gpu, stage: int) -> StepTime:
    layers = stage_layers(config)[stage]
    parts, ranks = local_parts(layers), _ranks(config)
    steps, pipe = config.accumulation_steps, config.parallel.pipe
    payload, update = step_payload(config, stage), update_payload(config, stage)
    recomputed = int(config.train.activation_checkpointing)  # once more forward
    forward = sum(layer.work * layer.positions for layer in layers)
    products = steps * (3 + recomputed) * forward / (gpu.rate[config.train.precision] * COMPUTE_SHARE)
    memory_rate = gpu.bandwidth * MEMORY_SHARE
    builds = 1 / steps if config.train.keep_dense else 2 + recomputed
    moved = sum(
        STORAGES[part.storage].moved_bytes(part.entries, part.slots, config.element_bytes, builds) for part in parts
    )
    matrices = steps * moved / memory_rate
    idle = max(0.0, steps * _launches(config) * len(layers) / len(layer_parts(config)) - products - matrices)
    data = {key: payload.pop(key) for key in list(payload) if key[0] == "data"}
    exchange = _seconds(config, gpu, payload, steps * 4 * len(layers))
    stepped = sum(part.stored for part in parts) / (config.data_degree if config.zero_stage else 1)
    calls = 2 * len(parts) * steps if config.zero_stage == 3 else 4  # one for each weight and pass, or a few buckets
    sent = dict.fromkeys(AXES, 0.0)
    for (axis, operation), each in {**payload, **data}.items():
        sent[axis] += sent_bytes(operation, each, ranks[axis])
    every = config.sparsity.update_every
    return StepTime(
        products,
        matrices,
        idle,
        exchange,
        waiting=(products + matrices + idle + exchange) * (pipe - 1) / steps,
        data=_seconds(config, gpu, data, calls),
        optimizer=(12 + 8 * len(config.train.moments) + config.element_bytes) * stepped / memory_rate,
        update=_seconds(config, gpu, update, len(parts)) / every if every else 0.0,
        sent=sent,
        update_sent=sum(sent_bytes(operation, each, ranks[axis]) for (axis, operation), each in update.items()),
        bubble=(pipe - 1) / (steps + pipe - 1),
    )


def _launches(config: Config) -> float:
    """Seconds for one micro-batch of all layers with the trails that one rank holds."""
    if config.train.compile:
        return 0.0
    held = replace(config.trails, count=config.trails.count // config.parallel.trail)
    train = replace(config.train, micro_batch_size=config.family.batch_unit(config))  # more have as many kernels
    return LAUNCH * _kernels(replace(config, trails=held, train=train, parallel=Parallel(), world_size=1))


@lru_cache(maxsize=64)
def _kernels(config: Config) -> int:
    return count_micro_batch(config).kernels


def _ranks(config: Config) -> dict[str, int]:
    degrees = config.parallel
    return {"tensor": degrees.tensor, "trail": degrees.trail, "data": config.data_degree, "pipe": degrees.pipe}


def _seconds(config: Config, gpu: Gpu, payload: Payload, calls: int) -> float:
    ranks, span, seconds = _ranks(config), 1, 0.0
    for axis in AXES:  # fastest first: the ranks of an axis lie within the product of the degrees up to its own
        span *= ranks[axis]
        rate = (gpu.link if span <= NODE else gpu.network) * LINK_SHARE
        of_axis = [(operation, each) for (name, operation), each in payload.items() if name == axis]
        if of_axis:
            sent = sum(sent_bytes(operation, each, ranks[axis]) for operation, each in of_axis)
            seconds += sent / rate + LATENCY * calls * math.ceil(math.log2(ranks[axis]))
    return seconds
