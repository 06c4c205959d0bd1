"""How many bytes of tensors live at any moment, from the allocator's own events (torch.profiler)."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity

_MARK = "nt_dist mark: "


class Allocations:
    """Records every allocation between entering and leaving, with marks in between.

    Memory that was allocated before entering is not counted, and neither is its release.

    Args:
        device: Whose memory is counted.
    """

    def __init__(self, device: torch.device):
        self._type = device.type
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self._profile = torch.profiler.profile(activities=activities, profile_memory=True)
        self._marks: dict[str, int] = {}  # name to ns; the last one of a name
        self._times: list[int] = []  # ns, ascending
        self._live: list[int] = []  # bytes alive from that time on

    def __enter__(self) -> "Allocations":
        self._profile.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._profile.__exit__(*exception)
        events = list(_flat(self._profile.profiler.kineto_results.experimental_event_tree()))
        events.sort(key=lambda event: event.start_time_ns)
        sizes: dict[int, int] = {}  # of what was allocated here and is alive, by address
        live = 0
        for event in events:
            if event.tag == _EventType.Allocation and event.extra_fields.device.type == self._type:
                address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
                live += size if size > 0 else -sizes.pop(address, 0)
                if size > 0:
                    sizes[address] = size
                self._times.append(event.start_time_ns)
                self._live.append(live)
            elif event.name.startswith(_MARK):
                self._marks[event.name.removeprefix(_MARK)] = event.start_time_ns

    def mark(self, name: str) -> None:
        """Remembers this moment under a name; the last one of a name counts."""
        with torch.profiler.record_function(_MARK + name):  # on the same clock as the allocations
            pass

    def at(self, name: str) -> int:
        """Bytes alive at a mark. Only after leaving."""
        before = bisect_right(self._times, self._marks[name])
        return self._live[before - 1] if before else 0

    def peak(self, start: str, stop: str) -> int:
        """The most bytes alive at any moment between two marks. Only after leaving."""
        first, last = (bisect_right(self._times, self._marks[name]) for name in (start, stop))
        return max([self.at(start), *self._live[first:last]])


def _flat(events: Iterable) -> Iterator:
    for event in events:
        yield event
        yield from _flat(event.children)
