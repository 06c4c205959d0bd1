"""The nearest valid name to one that is not."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

SEARCHED = 100_000  # a mistyped number can be of any size, and its message must not take for ever


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None when none resembles it."""
    return next(iter(get_close_matches(name, list(valid), n=1, cutoff=0.5)), None)


def nearest_key(dotted: str, valid: Iterable[str]) -> str | None:
    """The valid ``section.key`` most like ``dotted``: one with the same key elsewhere, or with the nearest spelling."""
    valid, last = list(valid), dotted.rpartition(".")[2]
    return next((name for name in valid if name.rpartition(".")[2] == last), None) or nearest(dotted, valid)


def hint(found: str | None) -> str:
    """A closing question for an error message; empty when there is nothing to ask."""
    return f"; did you mean {found}?" if found else ""


def nearest_numbers(start: int, holds: Callable[[int], bool]) -> str:
    """The numbers nearest to ``start`` that hold, from 1 to four times it and SEARCHED both ways, as "24 or 32"."""
    below = range(start - 1, max(start - SEARCHED, 1) - 1, -1)
    above = range(start + 1, min(4 * start, start + SEARCHED) + 1)
    found = [next(filter(holds, numbers), None) for numbers in (below, above)]
    return " or ".join(str(number) for number in found if number) or "none"
