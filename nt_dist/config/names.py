"""The nearest valid name to one that is not."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None when none resembles it."""
    found = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return found[0] if found else None


SEARCHED = 100_000  # a mistyped number can be of any size, and its message must not take for ever


def nearest_key(dotted: str, valid: Iterable[str]) -> str | None:
    """The valid ``section.key`` most like ``dotted``: one with the same key elsewhere, or with the nearest spelling."""
    valid = list(valid)
    last = dotted.rpartition(".")[2]
    elsewhere = [name for name in valid if name.rpartition(".")[2] == last]
    return elsewhere[0] if elsewhere else nearest(dotted, valid)


def hint(found: str | None) -> str:
    """A closing question for an error message; empty when there is nothing to ask."""
    return f"; did you mean {found}?" if found else ""


def nearest_numbers(start: int, holds: Callable[[int], bool]) -> str:
    """The numbers from 1 on nearest to ``start`` that hold, one below and one above, as "24 or 32".

    The search above ends at four times ``start``, and both ways after SEARCHED numbers: a rule that nothing satisfies
    there has no near number.
    """
    below = next((number for number in range(start - 1, max(start - SEARCHED, 1) - 1, -1) if holds(number)), None)
    above = next((number for number in range(start + 1, min(4 * start, start + SEARCHED) + 1) if holds(number)), None)
    found = [str(number) for number in (below, above) if number is not None]
    return " or ".join(found) or "none"
