"""How all pictures look, and how they become files: light, legible, in colours that the colour-blind tell apart."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nt_dist.files import write_whole

INK, PALE = "#222222", "#6a6a6a"
SEQUENTIAL = "cividis"  # the same order of brightness with any colour vision, and in grey
# Okabe and Ito's palette (2008), told apart with any colour vision; its yellow, too light on white, is left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")

styled = matplotlib.rc_context(
    {
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": PALE,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "figure.facecolor": "white",
        "svg.fonttype": "path",  # the letters themselves: the same without the font
        "svg.hashsalt": "nt_dist",  # the same picture is the same file
    }
)
"""Decorates a function that draws, or saves, so that these settings hold in it."""


def nth(choices: Sequence[str], number: int) -> str:
    """Return the choice of this number; they come again when all are used."""
    return choices[number % len(choices)]


def panels(count: int, width: float = 5.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Return a figure and its ``count`` axes in a row, ``width`` × ``height`` inches each."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


class Drawn(NamedTuple):
    """A picture as the contents of two files."""

    svg: bytes
    png: bytes


@styled
def drawn(figure: Figure) -> Drawn:
    """Draw a figure: for any size, and in pixels."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", dpi=144, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=144)
    return Drawn(svg.getvalue(), png.getvalue())


def save_pictures(pictures: Mapping[str, Drawn], folder: Path) -> None:
    """Write each picture into ``folder`` as NAME.svg and NAME.png; a RunError where that fails."""
    for name, picture in pictures.items():
        write_whole(folder / f"{name}.svg", picture.svg)
        write_whole(folder / f"{name}.png", picture.png)
