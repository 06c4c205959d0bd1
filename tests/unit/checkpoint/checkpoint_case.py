"""What checkpoint tests share: a small model in any layout, ranks that are threads, a plain optimizer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from zlib import crc32

import torch
from torch import nn
from torch.distributed import HashStore

from nt_dist.checkpoint.manifest import TrainingState
from nt_dist.families import make_config
from nt_dist.model.weights import weight_specs
from nt_dist.parallel.mesh import AXES, unwatched
from nt_dist.parallel.place import MeshPlace
from nt_dist.sparsity.storages import STORAGES

CONFIG = make_config(
    {
        "model": {"hidden_size": 16, "ffn_size": 24, "num_layers": 2, "num_attention_heads": 2, "vocab_size": 30}
        | {"max_seq_len": 8},
        "trails": {"count": 2, "layers": 1},
        "sparsity": {"density": 0.4, "topology_shards": 4, "exempt": ["blocks.0.mlp.up"]},
        "train": {"recipe": "paper"},
        "run": {"keep": 2, "keep_every": 0},
    }
)
PROGRESS = TrainingState(step=7, consumed_samples=224, adam_step=6, data_digest="abc", extra={"skipped": [3, 5]})


def with_run(**changes):
    """The shared config with other settings in [run]."""
    return replace(CONFIG, run=replace(CONFIG.run, **changes))


class ThreadMesh:
    """One rank of a (pipe, data, trail, tensor) mesh whose ranks are threads of this process."""

    device = torch.device("cpu")

    def __init__(self, rank, shape, shared):
        self.rank, self.world_size, self._shared = rank, len(shared.things), shared
        self.is_main = rank == 0
        for name, degree in reversed(list(zip(AXES, shape, strict=True))):
            setattr(self, name, SimpleNamespace(rank=rank % degree, degree=degree))
            rank //= degree
        self.place = MeshPlace(self)
        self.working, self.store = unwatched, shared.store

    def gather_objects(self, thing):
        self._shared.things[self.rank] = thing
        self._shared.barrier.wait()
        things = list(self._shared.things)
        self._shared.barrier.wait()
        return things

    def any(self, *flags):
        return tuple(map(any, zip(*self.gather_objects(flags), strict=True)))

    def broadcast_object(self, thing):
        return self.gather_objects(thing)[0]


def on_ranks(shape, work):
    """Run ``work(mesh)`` on every rank of a mesh of ``shape``; return results or exceptions, in rank order."""
    size = torch.Size(shape).numel()
    shared = SimpleNamespace(things=[None] * size, barrier=threading.Barrier(size, timeout=20), store=HashStore())

    def run(rank):
        try:
            return work(ThreadMesh(rank, shape, shared))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


def on_one_rank(work):
    """Run ``work(mesh)`` on one rank; return its result or raise."""
    (result,) = on_ranks((1, 1, 1, 1), work)
    if isinstance(result, Exception):
        raise result
    return result


def part(count, degree, rank):
    """The block of ``range(count)`` that belongs to ``rank``."""
    return range(count * rank // degree, count * (rank + 1) // degree)


class PlainOptimizer:
    """The interface of OptimizerState over plain tensors: every data rank has everything."""

    def __init__(self, step=0, moments=CONFIG.train.moments):
        self.states, self.step, self.moments = {}, step, moments

    def read(self, weight):
        return {name: each.clone() for name, each in self.states[weight.spec.name].items()}

    def write(self, weight, state):
        self.states[weight.spec.name] = state
        weight.values.data.copy_(state["value"])


def model_part(mesh, storage, config=CONFIG, seed=None):
    """The weights a rank holds, and its optimizer's state; drawn from ``seed`` by weight, trail and shard, or empty."""
    names = list(weight_specs(config))
    model = nn.ModuleList()
    for name in (names[number] for number in part(len(names), mesh.pipe.degree, mesh.pipe.rank)):
        spec = weight_specs(config)[name]
        trails = part(spec.trails, mesh.trail.degree, mesh.trail.rank) if spec.trails > 1 else range(1)
        shards = part(spec.shards, mesh.tensor.degree, mesh.tensor.rank) if spec.shards > 1 else range(1)
        weight = STORAGES[storage if spec.is_sparse else "dense"](spec, trails, shards)
        model.append(weight)
        weight.reset(seed or 0)
    optimizer = PlainOptimizer(moments=config.train.moments)
    for weight in model:
        optimizer.states[weight.spec.name] = drawn_state(weight, seed, optimizer.moments)
    return model, optimizer


def drawn_state(weight, seed, moments):
    """Masters and moments that differ in every trail and shard, the same in every layout; zeros without a seed."""
    slots = torch.zeros(1 + len(moments), len(weight.trails), weight.num_slots)
    for trail in weight.trails if seed is not None else ():
        for shard in weight.shards:
            generator = torch.Generator().manual_seed(crc32(f"{seed}/{weight.spec.name}/{trail}/{shard}".encode()))
            for row, tensor in enumerate(slots):
                drawn = torch.randn(weight.spec.slots(shard), generator=generator)
                weight.fragment(tensor, trail, shard).copy_(drawn.square() if row == 2 else drawn)
    names = ("value", *moments)
    return {name: weight.from_slots(each) for name, each in zip(names, slots, strict=True)}


def content(model, optimizer):
    """Everything a rank holds, by (weight, trail, shard), in no particular layout."""
    found = {}
    for weight in model:
        slots = [weight.to_slots(each) for each in optimizer.read(weight).values()]
        for trail in weight.trails:
            for shard in weight.shards:
                state = [weight.fragment(each, trail, shard) for each in slots]
                found[weight.spec.name, trail, shard] = torch.stack([weight.positions(trail, shard).float(), *state])
    return found
