"""What the watchers' reports of all ranks amount to: which rank is at fault, and the words that name it.

Pure functions over what was reported; imports nothing outside the standard library.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

WAITS_IN = ("torch/distributed/", "deepspeed/comm/", "deepspeed/runtime/pipe/p2p")  # files of a rank that waits
WAITS_FOR_RUNS = ("nt_dist/files.py", " in lock")
MAX_CULPRITS, MAX_LINES = 8, 60  # named in full; lines of each one's threads


class Limits(NamedTuple):
    """Seconds after which a stopped process, a silent host, a rank that outlives another one, and one that neither
    says that it gets on nor works are given up."""

    stopped: float
    silence: float
    grace: float
    idle: float


@dataclass
class View:
    """What is known of one rank, most of it from its last report; times are in seconds."""

    rank: int
    host: str = "?"
    phase: str = "starting"
    step: int = 0
    beats: int = 0
    idle: float = 0.0  # since its last beat, when it reported
    late: bool = False  # its beat was overdue, or it did not work
    stuck: bool = False  # it has waited for others for as long
    stopped: float = 0.0  # for which its process has been stopped (SIGSTOP)
    gone: bool = False  # its process has ended
    code: int | None = None  # what it left with; None if it said nothing
    unwatched: bool = False  # its watcher is gone, though it had not said so
    silent: float = 0.0  # since its last report came
    threads: str = ""  # where they stand, as faulthandler writes it: the main thread last, innermost frames first

    @property
    def failed(self) -> bool:
        """Whether it has left and the others cannot go on."""
        return self.gone and self.code != 0

    @property
    def place(self) -> str:
        """``step 12 (saving)``, as words."""
        return f"step {self.step} ({self.phase})"

    @property
    def frames(self) -> list[str]:
        """The main thread's, innermost first; none where they are not known."""
        lines = map(str.strip, self.threads.strip().split("\n\n")[-1].splitlines())
        return [line for line in lines if line.startswith("File ")]

    @property
    def innermost(self) -> str:
        """Where the main thread stands: the innermost frame, and the innermost one of this package."""
        if not self.frames:
            return "where is not known"
        first, ours = self.frames[0], next((frame for frame in self.frames if "/nt_dist/" in frame), self.frames[0])
        return first if ours == first else f"{first}, called from {ours}"

    @property
    def waits(self) -> bool:
        """Whether the main thread waits for other ranks."""
        return any(part in frame for frame in self.frames[:4] for part in WAITS_IN)

    @property
    def waits_for_another_run(self) -> bool:
        """Whether the main thread waits for a lock that another run's process has."""
        return any(WAITS_FOR_RUNS[0] in frame and frame.endswith(WAITS_FOR_RUNS[1]) for frame in self.frames[:2])


def is_lost(views: list[View], limits: Limits) -> bool:
    """Whether the job cannot go on and no rank will say so by itself: a rank stands still, or its host is silent, or
    all wait for each other."""
    here = [view for view in views if not view.gone]
    return (len(views) > 1 and bool(here) and all(view.stuck for view in here)) or any(
        not view.gone
        and (view.late or view.stopped >= limits.stopped or (view.silent >= limits.silence and not view.unwatched))
        for view in views
    )


def _sure_sign(view: View, limits: Limits) -> tuple[int, str] | None:
    """The surest sign that a rank is at fault, whoever else stands still: its number (0: the surest) and its words.

    A rank is perhaps late a little sooner than what it waits for is given up: half of a limit is a sign.
    """
    if view.failed:
        return 0, f" {'died without a word' if view.code is None else 'ended with an error'} in {view.place}"
    if view.gone:
        return None
    if view.stopped >= limits.stopped / 2:
        return 1, f" has been stopped (SIGSTOP) for {view.stopped:.0f} s in {view.place}"
    if view.unwatched:
        return 3, f": its watcher is gone, and perhaps its host; it was in {view.place}"
    if view.silent >= limits.silence / 2:
        return 2, f": nothing has been heard of its host for {view.silent:.0f} s; it was in {view.place}"
    return None


def culprits(views: list[View], limits: Limits) -> list[View]:
    """Return the ranks that the others wait for, the surest signs first.

    Of ranks that merely stand still (one's beat is overdue, the others' soon will be) it is those that do not wait for
    others themselves, and of these the ones that have come least far.
    """
    sure = [(sign[0], view) for view in views if (sign := _sure_sign(view, limits))]
    if sure:
        return [view for _, view in sorted(sure, key=lambda found: found[0])]
    idle = max((view.idle for view in views if view.late and not view.gone), default=0.0)
    still = [view for view in views if not view.gone and (view.late or view.idle >= idle / 2)]
    suspects = [view for view in still if view.threads and not view.waits] or still
    least = min(((view.step, view.beats) for view in suspects), default=None)
    return [view for view in suspects if (view.step, view.beats) == least]


def describe(view: View, limits: Limits) -> str:
    """One line on a rank at fault."""
    _, how = _sure_sign(view, limits) or (None, f" has stood still for {view.idle:.0f} s in {view.place}")
    return f"rank {view.rank} on {view.host}{how}"


def report(views: list[View], limits: Limits) -> str:
    """Return the job's last words: who is at fault and where its threads stand, then where the others stand."""
    guilty = culprits(views, limits)
    named, more = guilty[:MAX_CULPRITS], guilty[MAX_CULPRITS:]
    lines = [f"error: {describe(view, limits)}" for view in named]
    if more:
        lines.append(f"error: and {len(more)} more ranks: {_numbers(more)}")
    for view in named:
        if view.threads:
            lines.append(f"where the threads of rank {view.rank} stand:")
            lines += [f"  {line}" for line in view.threads.splitlines()[:MAX_LINES]]
    places = defaultdict(list)
    for view in views:
        if view not in guilty and not view.gone:
            places[f"{view.place}, {view.innermost}"].append(view)
    lines += [f"rank {_numbers(found)}: {place}" for place, found in places.items()]
    return "\n".join([*lines, "the job is ended on all hosts; the same command goes on from the last checkpoint"])


def _numbers(views: list[View]) -> str:
    """``0-3,5`` for the ranks of views."""
    ranks = sorted(view.rank for view in views)
    groups = itertools.groupby(enumerate(ranks), key=lambda numbered: numbered[1] - numbered[0])
    runs = [[rank for _, rank in group] for _, group in groups]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
