"""Silent corruption: what several ranks hold must be the same to the bit, and what one rank alone holds plausible.

A flipped bit in a weight's copy on one rank never makes an error: that rank trains on with another model, and at ZeRO 0
stays different for good. So all copies are compared now and then, by sums over their raw bits:

    replicated over       data ranks                             trail and tensor ranks (trunk; norms)
    topology              always (topology_updates.py)                  always
    compute copy          ZeRO 0-2; at ZeRO 3 what is gathered   always
    masters, moments      ZeRO 0                                 always, whatever their partition
    statistics            always                                 always

What is partitioned has no second copy. It must be finite and in a plausible range, and a compute copy must be its
master, rounded. What that leaves uncovered stands in docs/reliability.md.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from nt_dist.config.settings import AVERAGE
from nt_dist.engine.optimizer_state import OptimizerState
from nt_dist.errors import CorruptionError
from nt_dist.model.trails import statistics_of, weights_of
from nt_dist.parallel.mesh import AXES, Mesh

BLOCK = 1 << 20  # entries summed at once, which bounds the working memory
MASK = (1 << 48) - 1  # of a sum, so that those of 32,768 ranks can be added up in 64 bits
LARGEST = 1e6  # of a weight or gradient: far above any that training survives
MOST_MOMENTS = 1e3  # by which |exp_avg| can exceed sqrt(exp_avg_sq), and SGD's momentum a gradient
TINY = 1e-15  # where squares of gradients vanish in fp32
UNLIKE = "its compute copy is not its master"
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by bytes of an entry


class _Copy(NamedTuple):
    """One thing that several ranks hold: whose, what, along which axes, and the sum of its bits."""

    name: str
    what: str
    axes: tuple[str, ...]
    sum: torch.Tensor


class Integrity:
    """Checks on all ranks the memory of a model, each its own part of it; every rank has one."""

    def __init__(self, mesh: Mesh, model: nn.Module, optimizer_state: OptimizerState):
        self.mesh, self.place = mesh, mesh.place
        self.weights, self.statistics = weights_of(model), statistics_of(model)
        self.optimizer_state = optimizer_state

    @torch.no_grad()
    def check(self, when: str) -> None:
        """Check everything; ``when`` is for the message, as in "step 50". Collective.

        A CorruptionError on all ranks names weight, what of it, and ranks.
        """
        problems, differing = self._implausible(), self._differing(self._copies())
        if not self.mesh.any(bool(problems or differing))[0]:
            return
        found = self.mesh.gather_objects((problems, {self._key(copy): int(copy.sum) for copy in differing}))
        lines = [f"rank {rank}: {problem}" for rank, (each, _) in enumerate(found) for problem in each]
        lines += _name_ranks([sums for _, sums in found])
        if any(sums or any(UNLIKE in problem for problem in each) for each, sums in found):
            seen = f"memory is corrupted at {when}"
        else:
            seen = (
                f"numbers that no training survives at {when}: a learning rate that is too high (train.lr), gradients "
                "without a bound (train.grad_clip) or a bad batch (train.on_spike) are likelier than a fault of memory"
            )
        rule = f"{seen}; what is saved is from before, and the same command goes on from it"
        raise CorruptionError("\n".join([rule, *lines]))

    # -- copies --------------------

    def _copies(self) -> list[_Copy]:
        """What this rank holds that others hold too, the same list on all of them."""
        partitioned = self.optimizer_state.is_partitioned
        copies = []
        for name, weight in self.weights.items():
            axes = self.place.replica_axes(weight)
            start, copy, is_whole = self.optimizer_state.compute_copy(weight)
            copies.append(_Copy(name, "compute copy", ("data", *axes) if is_whole else axes, _sum_bits(copy, start)))
            mine = self.optimizer_state.partition(weight)
            for part in ("value", *self.optimizer_state.moments):
                if part == "value" and not partitioned:
                    continue  # it is the compute copy
                total = _sum_bits(mine.state[part], mine.start) if mine else torch.zeros_like(copies[-1].sum)
                what = "master" if part == "value" else part
                copies.append(_Copy(name, what, axes if partitioned else ("data", *axes), total))
        for name, statistic in self.statistics.items():
            axes = ("data", *self.place.replica_axes(statistic))
            copies.append(_Copy(name, "value", axes, _sum_bits(statistic.values.flatten(), 0)))
            if AVERAGE in self.optimizer_state.moments:
                copies.append(_Copy(name, AVERAGE, axes, _sum_bits(statistic.average.flatten(), 0)))
        pieces = [copy for copy in copies if "data" not in copy.axes]
        if pieces:  # positions count in a sum, so that those of all pieces add up to that of the whole
            sums = torch.stack([copy.sum for copy in pieces])
            for copy, total in zip(pieces, self.mesh.all_reduce(sums, ("data",)), strict=True):
                copy.sum.copy_(total & MASK)
        return copies

    def _differing(self, copies: list[_Copy]) -> list[_Copy]:
        """Those of ``copies`` that are not the same on all ranks that hold them."""
        extremes = self.mesh.extremes([copy.sum for copy in copies], [copy.axes for copy in copies])
        lowest, highest = torch.stack(extremes, dim=1)
        return [copies[number] for number in (lowest != highest).nonzero().flatten().tolist()]

    def _key(self, copy: _Copy) -> tuple:
        """The same for ranks that hold copies of one thing."""
        apart = [axis for axis in AXES if axis not in ("data", *copy.axes)]
        return (copy.name, copy.what, *(getattr(self.mesh, axis).rank for axis in apart))

    # -- what one rank alone can see --------------------

    def _implausible(self) -> list[str]:
        """What is wrong with the state that this rank keeps, a line each."""
        rules, found, numbers = [], [], []
        for name, rule, wrong, values in self._checks():
            rules.append(f"{name}: {rule}")
            found.append(torch.stack([wrong.any().long(), wrong.byte().argmax()]))
            numbers.append(values)
        first = torch.stack(found).tolist() if found else []  # one wait for the device
        return [
            f"{rule} (entry {entry} of its partition: {float(values[entry]):g})"
            for rule, (is_wrong, entry), values in zip(rules, first, numbers, strict=True)
            if is_wrong
        ]

    def _checks(self) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
        """Each (weight, what is wrong, where, numbers): a mask over the entries of this rank's partition, and them."""
        for name, weight in self.weights.items():
            partition = self.optimizer_state.partition(weight)
            if partition is None:
                continue
            state = partition.state
            value = state["value"]
            for part in ("value", AVERAGE) if AVERAGE in state else ("value",):
                what = "a weight" if part == "value" else "its average"
                yield name, f"{what} is not within {LARGEST:g}", ~(state[part].abs() <= LARGEST), state[part]
            if "momentum_buffer" in state:
                momentum = state["momentum_buffer"]
                wrong = ~(momentum.abs() <= LARGEST * MOST_MOMENTS)
                yield name, "momentum_buffer is no plausible number", wrong, momentum
            if "exp_avg_sq" in state:
                square = state["exp_avg_sq"]
                yield name, "exp_avg_sq is no plausible number", ~((square >= 0) & (square <= LARGEST**2)), square
                # Cauchy and Schwarz: at most (1 - b1) / sqrt((1 - b2) (1 - b1²/b2)), below 100 for usual rates.
                limit = square.clamp(min=0).sqrt().mul_(MOST_MOMENTS).add_(TINY)
                mean = state["exp_avg"]
                yield name, "exp_avg is too large for its exp_avg_sq", ~(mean.abs() <= limit), mean
            start, copy, _ = self.optimizer_state.compute_copy(weight)
            mine = copy.narrow(0, partition.start - start, len(value))
            if mine.data_ptr() != value.data_ptr():
                yield name, UNLIKE, mine != value.to(mine.dtype), mine


def _sum_bits(tensor: torch.Tensor, start: int) -> torch.Tensor:
    """A sum over a flat tensor's raw bits, an int64 scalar below 2^48 that any one changed entry changes.

    Entry i counts 2·(start + i) + 1 times, so that entries which change places or cancel out change it as well. An odd
    factor keeps a difference below 2^32 from vanishing.
    """
    bits = tensor.contiguous().view(INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for first in range(0, len(bits), BLOCK):
        block = bits[first : first + BLOCK]
        factors = torch.arange(start + first, start + first + len(block), device=tensor.device).mul_(2).add_(1)
        total += factors.mul_(block).sum()
    return total & MASK


def _name_ranks(found: list[dict[tuple, int]]) -> Iterator[str]:
    """Say of each thing that differs, given each rank's sums by key, which ranks have what most others have not."""
    for key in dict.fromkeys(key for sums in found for key in sums):
        sums = {rank: each[key] for rank, each in enumerate(found) if key in each}
        (usual, times), *others = Counter(sums.values()).most_common()
        name, what = key[:2]
        if others and others[0][1] == times:
            yield f"{name}: the copies of its {what} on ranks {_listed(sums)} differ, and none is the usual one"
        else:
            odd = [rank for rank, each in sums.items() if each != usual]
            rest = [rank for rank in sums if rank not in odd]
            yield f"{name}: its {what} on rank {_listed(odd)} is another than on rank {_listed(rest)}"


def _listed(ranks: list[int] | dict[int, int]) -> str:
    return ", ".join(map(str, ranks))
