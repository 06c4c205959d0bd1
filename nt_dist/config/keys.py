"""What one setting is: a default, a mark, a sentence, and the rule that its value alone must keep.

The marks say what a resume does with a setting that differs from the checkpoint's:
``identity`` must match, ``schedule`` needs ``run.allow_schedule_change``, ``free`` may change.
"""

from collections.abc import Callable
from dataclasses import Field, field, fields
from functools import partial
from typing import Any, NamedTuple

IDENTITY, SCHEDULE, FREE = "identity", "schedule", "free"


class Rule(NamedTuple):
    """A condition on one value: ``text`` completes the sentence "section.key = value …"."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    """The value is ``low`` or more."""
    return Rule(f"must be at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """The value is more than ``low``."""
    return Rule(f"must be above {low}", lambda value: value > low)


NOT_EMPTY = Rule("must not be empty", lambda value: value != "")


def _key(mark: str, default: Any, doc: str, rule: Rule | None = None) -> Any:
    """Declare a setting of a section: ``doc`` is one sentence for ``--help`` and the README.

    Rules over several settings stand in ``rules.py``.
    """
    return field(default=default, metadata={"doc": doc, "mark": mark, "rule": rule})


identity, schedule, free = (partial(_key, mark) for mark in (IDENTITY, SCHEDULE, FREE))


def keys_of(section: Any) -> dict[str, Field]:
    """The settings of a section (its class or an instance), by name, in the order written."""
    return {entry.name: entry for entry in fields(section)}


def reads(*keys: str) -> Callable[[Callable], tuple[tuple[str, ...], Callable]]:
    """Make a rule of a check over several settings: the keys that it reads, and itself."""
    return lambda check: (keys, check)
