"""The process mesh: which rank does what, built once and passed explicitly (docs/design.md §6).

Axes (pipe, data, trail, tensor), tensor fastest: rank = ((p·D + d)·R + r)·T + t, as DeepSpeed's
PipeModelDataParallelTopology counts with trail × tensor for its model axis.
"""

import contextlib
import ctypes
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from nt_dist.config.settings import Config
from nt_dist.errors import RunError
from nt_dist.parallel import launcher
from nt_dist.parallel.handshake import check_config_and_code
from nt_dist.parallel.meeting import meet
from nt_dist.parallel.place import Axis, MeshPlace
from nt_dist.parallel.world import World

AXES = ("pipe", "data", "trail", "tensor")
TIMEOUT = timedelta(minutes=10)  # for all ranks to come together, and for the peers of a collective
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


@contextlib.contextmanager
def unwatched(phase: str) -> Iterator[Callable[[], None]]:
    """Stand for :meth:`nt_dist.watch.heartbeat.Heartbeat.working` where nobody watches."""
    yield lambda: None


class Mesh(World):
    """Where this rank stands, and the few collectives that the rest of the package uses.

    ``device`` is where it computes. With ``splits_trunk`` each rank of the trail axis does the trunk's work for some of
    the sequences. With ``cuts_sequence`` each rank of the tensor axis holds some positions of hidden states between
    matrices, and where it ``gathers_again`` no more of them for backward.

    Attributes:
        working: What is told of this rank's own work, "reading" say, and that it gets on: that of its heartbeat.
    """

    def __init__(self, device_mesh: DeviceMesh, device: torch.device, config: Config):
        super().__init__(device)
        self.splits_trunk, self.cuts_sequence = config.splits_trunk, config.cuts_sequence
        self.gathers_again = config.cuts_sequence and not config.train.activation_checkpointing
        self.pipe, self.data, self.trail, self.tensor = (
            Axis(name, device_mesh.get_local_rank(name), device_mesh.size(dim), device_mesh.get_group(name))
            for dim, name in enumerate(AXES)
        )
        self.model = self._model_axis()
        self.place = MeshPlace(self)  # the part of the model that this rank holds
        self.working = unwatched

    def _model_axis(self) -> Axis:
        """The trail and tensor axes as one, what DeepSpeed knows as its model axis: rank r·T + t of R·T."""
        rank = self.trail.rank * self.tensor.degree + self.tensor.rank
        degree = self.trail.degree * self.tensor.degree
        if degree in (self.trail.degree, self.tensor.degree):  # no group of its own is needed
            group = self.tensor.group if degree == self.tensor.degree else self.trail.group
        else:  # tensor is the fastest axis and trail the next, so these are ranks in a row
            group, _ = dist.new_subgroups(degree)
        return Axis("model", rank, degree, group)

    def sample_axes(self, in_trail: bool) -> tuple[str, ...]:
        """Return the axes whose ranks see samples of their own, over which gradients and statistics add up."""
        return ("data",) if in_trail or not self.splits_trunk else ("data", "trail")

    def all_reduce(self, tensor: torch.Tensor, axes: tuple[str, ...] = AXES, op: str = "sum") -> torch.Tensor:
        """Reduce ``tensor`` in place over the ranks along ``axes``; return it. ``op``: "sum", "max" or "min"."""
        if set(axes) == set(AXES):
            if self.world_size > 1:
                dist.all_reduce(tensor, _OPERATIONS[op])
            return tensor
        for axis in (getattr(self, name) for name in axes):
            if axis.degree > 1:
                dist.all_reduce(tensor, _OPERATIONS[op], group=axis.group)
        return tensor

    def broadcast(self, tensor: torch.Tensor, axes: tuple[str, ...]) -> torch.Tensor:
        """Overwrite ``tensor`` with that of the first rank along ``axes``; return it."""
        for axis in (getattr(self, name) for name in axes):
            if axis.degree > 1:
                dist.broadcast(tensor, group=axis.group, group_src=0)
        return tensor

    def extremes(self, tensors: Sequence[torch.Tensor], axes: Sequence[tuple[str, ...]]) -> list[torch.Tensor]:
        """Return for each integer tensor the lowest and the highest of it, [2, ...], over the ranks along its axes.

        All tensors with the same axes travel together.
        """
        found: dict[int, torch.Tensor] = {}
        for own in dict.fromkeys(axes):
            numbers = [number for number, each in enumerate(axes) if each == own]
            flat = torch.cat([tensors[number].flatten() for number in numbers])
            highest, flipped = self.all_reduce(torch.stack([flat, ~flat]), own, "max")
            parts = torch.stack([~flipped, highest]).split([tensors[number].numel() for number in numbers], dim=1)
            found |= {number: part.view(2, *tensors[number].shape) for number, part in zip(numbers, parts, strict=True)}
        return [found[number] for number in range(len(tensors))]


def init_mesh(config: Config) -> Mesh:
    """Join the other ranks and build the mesh of ``config.parallel``.

    Uses the process group that exists, or makes one: over NCCL where there is a GPU for each local rank, else gloo.

    Raises:
        RunError: If there are more local ranks than GPUs, the ranks are not those the config was read for, or they have
            not the same config and code.
    """
    keep_freed_memory()
    allow_tf32(config.train.tf32)
    local_rank = 0 if config.world_size == 1 else launcher.process().local_rank
    device = _device(local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        # a collective waits for its peers longer than the watch (watching.py) does, where there is one
        watched = config.run.phase_timeout if config.run.stall_timeout else 0.0
        try:
            _join(backend, TIMEOUT + timedelta(seconds=watched), config.world_size == 1)
        except dist.DistError as error:  # of the store where they meet: another job's, perhaps
            where = ":".join(map(str, launcher.meeting_point()))
            problem = str(error).splitlines()[0]
            raise RunError(f"MASTER_ADDR:MASTER_PORT = {where}: the ranks have not met: {problem}") from error
    import deepspeed  # slow to import, so only where a run needs it

    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    with without_compiled_ops():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    if dist.get_world_size() != config.world_size:
        error = RunError(f"{dist.get_world_size()} ranks have met, but the launcher announced {config.world_size}")
        error.is_said = dist.get_rank() > 0
        raise error
    check_config_and_code(World(device), config)
    shape = (config.parallel.pipe, config.data_degree, config.parallel.trail, config.parallel.tensor)
    return Mesh(init_device_mesh(device.type, shape, mesh_dim_names=AXES), device, config)


def close() -> None:
    """Leave the process group; to be called before a process ends well."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(number: int) -> torch.device:
    if not torch.cuda.is_available():
        asked = os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if asked != "cpu":
            raise RunError(f"DS_ACCELERATOR = {asked!r}: torch finds no GPU here; unset it, or set it to cpu")
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if number >= count:
        rule = "start as many ranks on each host as it has GPUs"
        raise RunError(f"local rank {number} has no GPU: there are {count} here; {rule}")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def _join(backend: str, timeout: timedelta, is_alone: bool) -> None:
    """Make the process group; ``is_alone`` where no other rank belongs to it, whatever variables a launcher left."""
    rank, world_size, local_rank = launcher.Process() if is_alone else launcher.process()
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    (address, port), said_by = launcher.meeting_point(), launcher.said_by()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))  # DeepSpeed reads them too
    os.environ.update(LOCAL_RANK=str(local_rank), MASTER_ADDR=address, MASTER_PORT=str(port))
    # Gloo would take the address that this host's own name has, which many systems map to the loopback.
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := launcher.interface_to(address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(
            backend, store=meet(TIMEOUT, said_by), timeout=timeout, rank=rank, world_size=world_size
        )


@contextlib.contextmanager
def without_compiled_ops() -> Iterator[None]:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPUs at first use.

    It needs a compiler and 20 s, serves ranks on one host only, and stands still where the processor lacks AVX-512.
    """
    backend = importlib.import_module("deepspeed.comm.torch")  # the attribute of that name is torch itself
    original = backend.build_shm_op
    backend.build_shm_op = lambda: None
    try:
        yield
    finally:
        backend.build_shm_op = original


def allow_tf32(allowed: bool) -> None:
    """Say whether GPUs round the factors of fp32 products and convolutions; torch rounds the latter's by itself."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: giving pages back and faulting them in again took a fifth of a CPU step."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)
