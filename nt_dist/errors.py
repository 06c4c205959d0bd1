"""The errors that users see: one small family, so that a command can tell bad input from a bug.

A message gives the key, the value and the rule. Bugs of our own are ``assert`` and never one of these.
"""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabulators and ends of lines


def printable(text: str) -> str:
    """Return text from outside as a terminal may be given it: no control characters, of which escape sequences consist.

    They are shown as Python writes them, ``\\x1b``.
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class NTDistError(Exception):
    """Bad input or a fault outside this program; shown without a traceback.

    Attributes:
        is_said: Whether another rank says the same, so that this one need not.
    """

    is_said = False


class ConfigError(NTDistError):
    """Everything that is wrong with a configuration, reported together: one message per problem."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self):
        return (ConfigError, (self.problems,))


class DataError(NTDistError):
    """A corpus, a tokenizer or a prepared file that cannot be used."""


class CheckpointError(NTDistError):
    """A checkpoint that is missing, damaged, or of another model."""


class DiskError(CheckpointError):
    """A checkpoint that the disk does not take; perhaps it will later."""


class RunError(NTDistError):
    """A run that cannot start or go on: its folder, its ranks, its numbers."""


class CorruptionError(NTDistError):
    """Memory of a run that is not what was computed: copies that differ, numbers that no training makes."""


class TopologyError(NTDistError):
    """Replicas of one weight whose topologies differ."""
