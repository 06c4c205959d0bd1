"""Runs beside one another as a table, Markdown and CSV, with its pictures: what a comparison and a study write."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nt_dist.files import write_whole
from nt_dist.pictures.style import Drawn, drawn, save_pictures


@dataclass(frozen=True)
class StudyTable:
    """The rows twice, and what goes with them; ``name`` is that of the files."""

    name: str
    cells: Sequence[Mapping[str, str]]  # as people read them, by heading
    rows: Sequence[Mapping[str, Any]]  # with every digit, by column
    notes: Sequence[str]
    figures: Mapping[str, Figure]  # by file name

    def markdown(self) -> str:
        """The table as a Markdown one, with the notes."""
        columns = list(self.cells[0])
        lines = [columns, ["---"] * len(columns), *(row.values() for row in self.cells)]
        return "\n\n".join(["\n".join(f"| {' | '.join(line)} |" for line in lines), *self.notes]) + "\n"

    def csv(self) -> str:
        """The rows as CSV; lists of numbers joined by spaces, nothing for None."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()})
        return buffer.getvalue()

    def write(self, folder: Path) -> dict[str, Drawn]:
        """Write NAME.md, NAME.csv and each figure as PNG and SVG; return the pictures. RunError where that fails."""
        write_whole(folder / f"{self.name}.md", self.markdown())
        write_whole(folder / f"{self.name}.csv", self.csv())
        pictures = {name: drawn(figure) for name, figure in self.figures.items()}
        save_pictures(pictures, folder)
        return pictures


def listed(numbers: set[int]) -> str:
    """Numbers in order, as "1,000 / 2,000"."""
    return " / ".join(f"{number:,}" for number in sorted(numbers))
