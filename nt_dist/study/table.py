"""Tables as Markdown and CSV, and the files of a comparison."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from nt_dist.files import write_whole
from nt_dist.pictures.style import Drawn, drawn, save_pictures


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


def listed(numbers: set[int]) -> str:
    """Numbers in order, as "1,000 / 2,000"."""
    return " / ".join(f"{number:,}" for number in sorted(numbers))


def write_study(
    folder: Path, name: str, text: str, rows: Sequence[Mapping[str, object]], figures: Mapping[str, Figure]
) -> dict[str, Drawn]:
    """Write NAME.md, NAME.csv and each figure as PNG and SVG into ``folder``; return the pictures.

    Raises:
        RunError: Something cannot be written.
    """
    write_whole(folder / f"{name}.md", text)
    write_whole(folder / f"{name}.csv", comma_separated(rows))
    pictures = {each: drawn(figure) for each, figure in figures.items()}
    save_pictures(pictures, folder)
    return pictures
