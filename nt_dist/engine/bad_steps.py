"""The account of a run's bad steps: which samples were left out, how many steps in a row, and the report that ends it.

A bad step is one that the guard (step_guard.py) does not find good: it is only seen, or it changes nothing, or the run
goes back to its last checkpoint. In the latter two cases its samples are left out; their numbers are part of every
later checkpoint, so that the order of samples is a function of them alone. Every rank keeps the same account.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from nt_dist.errors import RunError

COUNTED = ("steps_not_finite", "steps_spiked", "rollbacks")


class StepVerdict(IntEnum):
    """What is wrong with a step, the worst last."""

    GOOD = 0, "nothing is wrong"
    NORM_SPIKE = 1, "the norm of its gradient is far outside its recent spread"
    LOSS_SPIKE = 2, "its loss is far outside its recent spread"
    NORM_NOT_FINITE = 3, "its gradient is no number"
    LOSS_NOT_FINITE = 4, "its loss is no number"

    def __new__(cls, number: int, words: str):
        verdict = int.__new__(cls, number)
        verdict._value_, verdict.words = number, words
        return verdict

    @property
    def is_spike(self) -> bool:
        """Whether it is a number, but far outside its recent spread."""
        return self in (StepVerdict.NORM_SPIKE, StepVerdict.LOSS_SPIKE)


@dataclass(frozen=True)
class BadStep:
    """One bad optimizer step."""

    step: int
    why: str  # in words
    loss: float  # mean over trails
    grad_norm: float
    samples: tuple[int, int]  # the number of the first one, and the one after the last
    what_was_done: str  # "seen" (it was taken all the same), "skipped" or "rolled back"

    def __str__(self) -> str:
        first, end = self.samples
        figures = f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}, samples {first} to {end - 1}"
        return f"step {self.step}: {self.why} ({figures}); {self.what_was_done}"

    def line(self, step: int) -> dict[str, Any]:
        """Its line of ``metrics.jsonl``, standing under ``step``."""
        return {"step": step, "bad_step": asdict(self)}


class BadSteps:
    """Counts bad steps, of which a run may have ``most`` in a row (``train.max_bad_steps``)."""

    def __init__(self, most: int):
        self.most = most
        self.counts = dict.fromkeys(COUNTED, 0)  # spikes also where they were only seen
        self.left_out: list[tuple[int, int]] = []  # sample numbers [first, end) of steps that changed nothing; sorted
        self._in_a_row: list[tuple[int, str]] = []
        self._lines: list[tuple[int, BadStep]] = []  # with the step under which each stands in metrics.jsonl

    def add(self, bad: BadStep, verdict: StepVerdict) -> None:
        """Take a bad step into account; one too many in a row is a RunError, whose message is the report."""
        self.counts["steps_spiked" if verdict.is_spike else "steps_not_finite"] += 1
        self.counts["rollbacks"] += bad.what_was_done == "rolled back"
        self._lines.append((bad.step, bad))
        if bad.what_was_done == "seen":
            return
        self.left_out = sorted({*self.left_out, bad.samples})
        self._in_a_row.append((bad.step, str(bad)))
        if len(self._in_a_row) > self.most:
            rule = f"{len(self._in_a_row)} bad steps in a row are more than train.max_bad_steps = {self.most}"
            report = [f"{rule}; the last checkpoint is from before them", *(message for _, message in self._in_a_row)]
            raise RunError("\n".join(report))

    def applied(self, step: int) -> None:
        """Take note of a step that was taken; one before the step that was bad last, repeated, does not end the row."""
        if self._in_a_row and step >= self._in_a_row[-1][0]:
            self._in_a_row = []

    def lines_cut_off(self, step: int) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` that a return to ``step`` cuts off and that no step will write again.

        They stand under the next step then: a later start from that checkpoint comes to the same bad steps anew, and
        must not find them written already.
        """
        self._lines = [(min(line, step + 1), bad) for line, bad in self._lines]
        return (bad.line(line) for line, bad in self._lines if line == step + 1)

    def state(self) -> dict[str, Any]:
        """The account as JSON, for a checkpoint."""
        return {"counts": self.counts, "left_out": self.left_out, "in_a_row": self._in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with the account of a checkpoint."""
        self.counts = dict.fromkeys(COUNTED, 0) | state.get("counts", {})
        self.left_out = [(first, end) for first, end in state.get("left_out", [])]
        self._in_a_row = [(step, message) for step, message in state.get("in_a_row", [])]
