"""Counts where a host would wait for its GPU, also on a machine that has none."""

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READ = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"}
_MADE_OF_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}


class HostWaits:
    """Within the context, ``events`` gets a line for each wait.

    A tensor counts as the device's, unless it was made on the host while this looked on, of numbers or of such tensors.
    What reads a device's tensor waits for it: ``item``, ``tolist``, ``bool``, ``cpu``, ``nonzero``. Making one of
    numbers waits too, as its memory is pageable. So does DeepSpeed's accelerator where it synchronizes.
    """

    def __init__(self):
        self.events: list[str] = []
        self._of_host: dict[int, torch.Tensor] = {}  # by id; held, so that no other tensor gets it

    def __enter__(self) -> "HostWaits":
        self._stack = ExitStack()
        self._stack.enter_context(
            mock.patch.object(get_accelerator(), "synchronize", lambda *_: self.events.append("wait: synchronize"))
        )
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.close()
        self._of_host.clear()

    def is_hosts(self, *things: Any) -> bool:
        tensors = [each for each in tree_leaves(things) if isinstance(each, torch.Tensor)]
        return all(id(each) in self._of_host for each in tensors)

    def note_hosts(self, things: Any) -> None:
        self._of_host |= {id(each): each for each in tree_leaves(things) if isinstance(each, torch.Tensor)}


class _Functions(TorchFunctionMode):
    """Sees torch's functions that are no operations of its dispatcher."""

    def __init__(self, waits: HostWaits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _MADE_OF_NUMBERS and self.waits.is_hosts(args):
            if kwargs.get("device") is None:
                self.waits.note_hosts(result)
            else:
                self.waits.events.append(f"wait: {func.__name__}")
        elif func in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy) and not self.waits.is_hosts(args):
            self.waits.events.append(f"wait: {func.__name__}")
        return result


class _Operations(TorchDispatchMode):
    """Sees the operations of torch's dispatcher."""

    def __init__(self, waits: HostWaits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_hosts = self.waits.is_hosts(args, kwargs) and kwargs.get("device") is None
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if is_hosts:
            self.waits.note_hosts(result)
        elif name in _READ:
            self.waits.events.append(f"wait: {name}")
        return result
