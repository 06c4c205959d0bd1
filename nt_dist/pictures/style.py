"""How all pictures look, and how they become files: light, legible, in colours that the colour-blind tell apart."""

import io
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nt_dist.files import write_whole

# Okabe and Ito's palette (2008), told apart with any colour vision; its yellow, too light on white, is left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, PALE = "#222222", "#6a6a6a"
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
SEQUENTIAL = "cividis"  # the same order of brightness with any colour vision, and in grey

_SETTINGS = {
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


def styled(draw):
    """Decorate a function that draws, or saves, so that the settings of this module hold in it."""

    @wraps(draw)
    def inside(*arguments, **named):
        with matplotlib.rc_context(_SETTINGS):
            return draw(*arguments, **named)

    return inside


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
    contents = []
    for kind, metadata in (("svg", {"Date": None}), ("png", {})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=144, metadata=metadata)
        contents.append(buffer.getvalue())
    return Drawn(*contents)


def save_pictures(pictures: Mapping[str, Drawn], folder: Path) -> None:
    """Write each picture into ``folder`` as NAME.svg and NAME.png.

    Raises:
        RunError: One cannot be written.
    """
    for name, picture in pictures.items():
        write_whole(folder / f"{name}.svg", picture.svg)
        write_whole(folder / f"{name}.png", picture.png)
