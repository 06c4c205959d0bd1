"""How many bytes of tensors live at any moment, from the allocator's own events (torch.profiler)."""

from bisect import bisect_right
from itertools import accumulate

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

_MARK = "nt_dist mark: "


class Allocations:
    """Records every allocation between entering and leaving, with marks in between.

    Memory that was allocated before entering is not counted, and so has to stay.

    Args:
        device: Whose memory is counted.
    """

    def __init__(self, device: torch.device):
        self._type = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profile = torch.profiler.profile(activities=activities, profile_memory=True)
        self._marks: dict[str, int] = {}
        self._times: list[int] = []  # ns, ascending
        self._live: list[int] = []  # bytes alive from that time on

    def __enter__(self) -> "Allocations":
        self._profile.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._profile.__exit__(*exception)
        events = self._profile.profiler.kineto_results.events()
        self._marks = {e.name(): e.start_ns() for e in sorted(events, key=lambda e: e.start_ns()) if _MARK in e.name()}
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.device_type() == self._type]
        changes.sort(key=lambda change: change[0])  # stable: a free and an allocation at one time stay in order
        self._times = [when for when, _ in changes]
        self._live = list(accumulate(size for _, size in changes))

    def mark(self, name: str) -> None:
        """Remembers this moment under a name; the last one of a name counts."""
        with torch.profiler.record_function(_MARK + name):  # on the same clock as the allocations
            pass

    def at(self, name: str) -> int:
        """Bytes alive at a mark. Only after leaving."""
        before = bisect_right(self._times, self._marks[_MARK + name])
        return self._live[before - 1] if before else 0

    def peak(self, start: str, stop: str) -> int:
        """The most bytes alive at any moment between two marks. Only after leaving."""
        first, last = (bisect_right(self._times, self._marks[_MARK + name]) for name in (start, stop))
        return max([self.at(start), *self._live[first:last]])
