"""Generated text on a terminal, coloured by uncertainty; as lines of numbers where there is no terminal."""

import math
from collections.abc import Iterable
from typing import TextIO

from nt_dist.inference.generate import Piece

_SCALE = (40, 76, 112, 148, 184, 220, 214, 208, 202, 196)  # of the 256 colours, from green over yellow to red
_RESET = "\x1b[0m"


def colour(uncertainty: float, most: float) -> str:
    """Return the escape sequence for an uncertainty between 0 and ``most``."""
    step = math.floor(len(_SCALE) * min(max(uncertainty / most, 0.0), 1.0))
    return f"\x1b[38;5;{_SCALE[min(step, len(_SCALE) - 1)]}m"


def write(pieces: Iterable[Piece], prompt: str, out: TextIO, kind: str, most: float) -> None:
    """Write a prompt and the pieces that follow it, each as soon as it is there.

    Args:
        pieces: What is generated.
        prompt: Written first, in no colour.
        out: Where to; colours go to a terminal only. Elsewhere each piece is a line: its uncertainty in nats, a
            tabulator, and its text as a Python string.
        kind: What the uncertainty is; "none": plain text everywhere.
        most: Uncertainty that is wholly red, in nats.
    """
    if kind != "none" and not out.isatty():
        for piece in pieces:
            print(f"{piece.uncertainty:.4f}\t{piece.text!r}", file=out, flush=True)
        return
    print(prompt, end="", file=out, flush=True)
    for piece in pieces:
        text = piece.text if kind == "none" else f"{colour(piece.uncertainty, most)}{piece.text}{_RESET}"
        print(text, end="", file=out, flush=True)
    print(file=out, flush=True)
