"""``metrics.jsonl``: one JSON object a line, for every logged step and for every evaluation of a run.

A run that continues from a checkpoint first cuts off what was written after it, so that no step stands in the file
twice. Lines are written whole and handed to the operating system at once; a line that a killed run left half-written is
cut off as well.
"""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nt_dist.errors import RunError
from nt_dist.files import Journal, check_plain, reading, write_whole
from nt_dist.messages import LOGGER

METRICS = "metrics.jsonl"
_FLOPS = ("flops_per_second_dense_equivalent", "flops_per_second_sparse_effective")
_MOST = 1e30  # tokens, or tokens a second
MEASURED = ("tokens_per_second", *_FLOPS, "memory", "time")
"""Keys of a line that a clock or a meter gives: all others are the same whenever a step is done again."""


class MetricsLog:
    """Appends objects to a file, from which lines after ``last_step`` (0: all) are cut off; the main rank has one.

    RunError if a line other than the last is no JSON object with a step, or the file cannot be cut. Lines that the disk
    does not take wait, and end nothing (:class:`nt_dist.files.Journal`).
    """

    def __init__(self, path: Path, last_step: int):
        self._kept, self._journal = _cut_off(path, last_step), Journal(path)

    def write(self, record: dict[str, Any]) -> None:
        """Adds one line. Numbers that are not finite, which JSON has not but Python writes, become null."""
        finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
        self._journal.add((json.dumps(finite, allow_nan=False) + "\n").encode())

    def settle(self) -> int:
        """Sees the lines on the disk, and returns how many are there for sure."""
        return self._kept + self._journal.settle()

    def close(self) -> None:
        """Closes the file, with everything on disk."""
        self._journal.close()


def _cut_off(path: Path, last_step: int) -> int:
    """Leave no line behind ``last_step``, nor a half one; return how many stay.

    Where all that stay come first, as a run leaves them, the file is only shortened: that needs no room on a full disk.
    """
    kept = [record["step"] <= last_step for record in read_metrics(path)]
    if not path.exists():
        return 0
    lines, count = [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]], sum(kept)
    if all(kept[:count]):
        with reading(path):
            os.truncate(path, sum(map(len, lines[:count])))
    else:
        write_whole(path, b"".join(line for line, stays in zip(lines, kept, strict=True) if stays))
    return count


def check_continued(path: Path, last_step: int, lines: int) -> None:
    """RunError where fewer lines stand up to ``last_step`` than the ``lines`` that its checkpoint knows of; a warning
    where the file is not there at all."""
    found = sum(record["step"] <= last_step for record in read_metrics(path))
    if found >= lines:
        return
    if not path.exists():
        LOGGER.warning("%s is not there: it begins anew behind step %d", path, last_step)
        return
    raise RunError(
        f"{path}: has {found} of the {lines} lines up to step {last_step}; put back a whole one, or move it away to go "
        "on without them"
    )


def put_aside(path: Path, what: str = "metrics") -> None:
    """Keep a file of a run that is not continued, under the first free name of ``metrics.jsonl.1`` and so on."""
    if path.exists() and path.stat().st_size:
        names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
        aside = next(name for name in names if not os.path.lexists(name))
        os.rename(path, aside)
        kept = path.parent, what, aside.name
        LOGGER.warning("this start continues no checkpoint in %s: its %s are kept as %s", *kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, or none if there is no such file; a RunError where one has no step."""
    with reading(path):
        try:
            check_plain(path)
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last newline was not finished
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError(f"step is {record['step']!r}")
            for name in ("tokens", "tokens_per_second"):
                value = record.get(name)  # null stands for what is no number
                if value is not None and not (isinstance(value, int | float) and 0 <= value < _MOST):
                    raise TypeError(f"{name} must be a number of at least 0")
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            raise RunError(f"{path}, line {number}: not a JSON object with a step ({problem})") from problem
        records.append(record)
    return records


def training_seconds(records: Iterable[Mapping[str, Any]], last: int) -> float:
    """Seconds that the steps of a run took, as its metrics have them: up to the last one logged, at most ``last``.

    Evaluations and saving are not among them.
    """
    seconds = tokens = 0.0
    for record in records:
        if record["step"] <= last and record.get("tokens") and record.get("tokens_per_second"):
            seconds += (record["tokens"] - tokens) / record["tokens_per_second"]
            tokens = record["tokens"]
    return seconds


def last_evaluation(path: Path) -> dict[str, Any] | None:
    """The newest evaluation in a metrics file, as ``{"step": …, "eval": {…}}``, or None; see ``read_metrics``."""
    return next((record for record in reversed(read_metrics(path)) if "eval" in record), None)
