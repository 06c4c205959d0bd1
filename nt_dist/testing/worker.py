"""One rank of the pool: ``python -m nt_dist.testing.worker SOCKET BACKEND`` (pool.py starts it).

Each task begins as if the interpreter were new: the globals that DeepSpeed and megatron-core keep are put back to what
they were after the import, as are the environment, the working folder, sys.path and torch's generator and default type.
"""

import contextlib
import copy
import datetime
import faulthandler
import gc
import importlib
import os
import pickle
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from types import NoneType

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import Init

# Modules whose module-level variables outlive an engine: groups, the communication backend, the contexts of ZeRO 3, …
STATEFUL_MODULES = (
    "deepspeed.comm.comm",
    "deepspeed.utils.groups",
    "deepspeed.runtime.zero.partition_parameters",
    "deepspeed.runtime.activation_checkpointing.checkpointing",
    "deepspeed.runtime.pipe.p2p",
    "megatron.core.parallel_state",
)
SEED = 1234


class GlobalState:
    """The state of this interpreter as it is now, to be put back after each task."""

    def __init__(self):
        self.variables = [
            (owner, name, value, copy.copy(value))
            for owner in (*map(importlib.import_module, STATEFUL_MODULES), Init)  # which numbers ZeRO 3's parameters
            for name, value in vars(owner).items()
            if not name.startswith("__") and isinstance(value, (NoneType, bool, int, float, str, list, dict, set))
        ]
        # ZeRO 3 numbers modules in a default argument, and compares the numbers over all ranks
        (self.modules_numbered,) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
        self.environment, self.folder, self.path = dict(os.environ), os.getcwd(), list(sys.path)

    def restore(self) -> None:
        """Undo what a task has left behind, its process groups included."""
        _release_engines()
        gc.collect()  # engines are full of cycles, and hold groups and shared buffers
        if dist.is_initialized():
            dist.destroy_process_group()
        for owner, name, value, content in self.variables:
            if isinstance(value, (list, dict, set)):  # in place, since other modules may hold the same one
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(content)
            setattr(owner, name, value)
        self.modules_numbered[:] = [0]
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        sys.path[:] = self.path
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        gc.collect()  # and what only those variables had held on to: each gloo group has threads of its own


def _release_engines() -> None:
    """Take the hooks off gradients: they hold their engine, and its groups, where Python's collector does not look."""
    for engine in [each for each in gc.get_objects() if issubclass(type(each), DeepSpeedEngine)]:
        for hook in getattr(engine.optimizer, "_grad_acc_hooks", ()):
            hook.remove()


def _run_task(task: bytes, backend: str) -> bytes:
    """Run one task; returns the pickled (succeeded, result or exception, traceback text)."""
    path, store, rank, world_size, timeout, call = pickle.loads(task)
    sys.path[:] = path
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    faulthandler.dump_traceback_later(timeout)
    try:
        fn, args = pickle.loads(call)
        if backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend,
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=timeout),
        )
        return pickle.dumps((True, fn(rank, world_size, *args), ""))
    except BaseException as error:  # SystemExit too: a command that leaves is an answer like any other
        text = traceback.format_exc()
        error.__traceback__ = error.__cause__ = error.__context__ = None  # frames would keep engines and groups alive
        with contextlib.suppress(Exception):
            answer = pickle.dumps((False, error, text))
            pickle.loads(answer)  # some exceptions pickle well and then do not unpickle
            return answer
        return pickle.dumps((False, None, text))
    finally:
        faulthandler.cancel_dump_traceback_later()


def _receive(connection: Connection, tasks: queue.Queue) -> None:
    """Hand tasks to the main thread, and end this rank, busy or not, as soon as the parent is gone."""
    try:
        while True:
            tasks.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


def main(arguments: list[str]) -> None:
    """Answer tasks until the parent closes the connection or dies."""
    connection, backend = Connection(int(arguments[0])), arguments[1]
    tasks: queue.Queue = queue.Queue()
    threading.Thread(target=_receive, args=(connection, tasks), daemon=True).start()
    state = GlobalState()
    state.restore()
    gc.freeze()  # what is imported stays: to look through it took most of each restore
    while True:
        answer = _run_task(tasks.get(), backend)
        state.restore()  # before the answer: peers that wait for this rank in a collective see it leave
        connection.send_bytes(answer)


if __name__ == "__main__":
    main(sys.argv[1:])
