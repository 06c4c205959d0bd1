"""Tables as Markdown and CSV, written whole or not at all."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nt_dist.errors import RunError


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comma_separated(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV, with every digit; lists of numbers joined by spaces, nothing for None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()})
    return buffer.getvalue()


def write_whole(path: Path, content: str) -> None:
    """Write a file that is whole or not there.

    Raises:
        RunError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as problem:
        partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {problem.strerror}") from None
