"""What one setting is: a default, a sentence, a mark, and the rule its value alone must keep.

The marks say what a resume does with a setting that differs from the checkpoint's:
``identity`` must match, ``schedule`` needs ``run.allow_schedule_change``, ``free`` may change.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any

IDENTITY = "identity"
SCHEDULE = "schedule"
FREE = "free"


@dataclass(frozen=True)
class Rule:
    """A condition on one value: ``text`` completes the sentence "section.key = value …"."""

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def at_least(low: float) -> Rule:
    """The value is ``low`` or more."""
    return Rule(f"must be at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """The value is more than ``low``."""
    return Rule(f"must be above {low}", lambda value: value > low)


def within(low: float, high: float) -> Rule:
    """The value is in the closed interval [low, high]."""
    return Rule(f"must be in [{low}, {high}]", lambda value: low <= value <= high)


def share() -> Rule:
    """The value is in the half-open interval (0, 1]."""
    return Rule("must be in (0, 1]", lambda value: 0 < value <= 1)


def one_of(*choices: str) -> Rule:
    """The value is one of these words."""
    return Rule("must be one of " + ", ".join(choices), lambda value: value in choices, choices)


def key(default: Any, mark: str, doc: str, rule: Rule | None = None) -> Any:
    """Declare a setting of a section.

    Args:
        default: Its value where a config does not name it.
        mark: IDENTITY, SCHEDULE or FREE.
        doc: One sentence for ``--help`` and the README.
        rule: What the value alone must keep; rules over several keys are in ``rules.py``.
    """
    assert mark in (IDENTITY, SCHEDULE, FREE)
    return field(default=default, metadata={"doc": doc, "mark": mark, "rule": rule})


def keys_of(section: Any) -> dict[str, Field]:
    """The settings of a section (its class or an instance), by name, in the order written."""
    return {entry.name: entry for entry in fields(section)}


def reads(*keys: str) -> Callable[[Callable], tuple[tuple[str, ...], Callable]]:
    """Make of a check over several settings the rule that a family lists: the keys that it reads, and itself."""
    return lambda check: (keys, check)
