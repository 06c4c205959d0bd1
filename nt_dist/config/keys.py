"""What one setting is: a default, a mark, a sentence, its value's rule; values as text; what is nearest to a wrong one.

Marks say what a resume does with a setting that differs from the checkpoint's: ``identity`` must match, ``schedule``
needs ``run.allow_schedule_change``, ``free`` may change.
"""

import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, field, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, NamedTuple

LARGEST = 2**63 - 1  # what counters, files and other libraries hold
SEARCHED = 100_000  # a mistyped number can be of any size, and its message must not take for ever
IDENTITY, SCHEDULE, FREE = "identity", "schedule", "free"
_TABLE_NAME = re.compile(r"[A-Za-z0-9_-]+")


class Tables(tuple):
    """Named tables of settings, ``[section.key.NAME]``: (name, ((entry, value), …)) each, in the order of their names.

    Only what was given stands in a table. What a table may hold are the settings of a section that ``table`` of the
    setting's metadata names.
    """

    @classmethod
    def of(cls, tables: Mapping[str, Mapping[str, Any]]) -> "Tables":
        """Tables from their values by name and entry."""
        return cls((name, tuple(tables[name].items())) for name in sorted(tables))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The values by name and entry."""
        return {name: dict(entries) for name, entries in self}


NO_TABLES = Tables()


class Lines(str):
    """The type of a setting that is a string of one or more lines; its values are plain strings."""


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_NAMES[Lines] = "a string"
_NAMES[Tables] = "tables of names of letters, digits, - and _, as in [section.key.name], with settings under each"
# Control characters, and undecodable bytes of a command line: a string with one could not be written again.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Rule(NamedTuple):
    """A condition on one value: ``text`` completes the sentence "section.key = value …"."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    """The value is ``low`` or more."""
    return Rule(f"must be at least {low}", lambda value: value >= low)


SECONDS = Rule("must be in [0, 10^8]", lambda value: 0 <= value <= 1e8)  # what clocks and libraries hold
POSITIVE = Rule("must be above 0", lambda value: value > 0)
FRACTION = Rule("must be in [0, 1]", lambda value: 0 <= value <= 1)
SHARE = Rule("must be in (0, 1]", lambda value: 0 < value <= 1)
NOT_EMPTY = Rule("must not be empty", lambda value: value != "")


def _is_span(value: str) -> bool:
    found = re.fullmatch(r"([1-9]\d{0,17}):([1-9]\d{0,17})", value)
    return bool(found) and int(found[1]) <= int(found[2])


SPAN = Rule("must be two steps, as in 10:12", lambda value: value == "" or _is_span(value))


def _key(mark: str, default: Any, doc: str, rule: Rule | None = None, table: type | None = None) -> Any:
    """Declare a setting of a section: ``doc`` is one sentence for ``--help`` and the README; ``table`` are the settings
    of each of its tables."""
    return field(default=default, metadata={"doc": doc, "mark": mark, "rule": rule, "table": table})


identity, schedule, free = (partial(_key, mark) for mark in (IDENTITY, SCHEDULE, FREE))


def keys_of(section: Any) -> dict[str, Field]:
    """The settings of a section (its class or an instance), by name, in the order written."""
    return {entry.name: entry for entry in fields(section)}


def entries_of(section: Any) -> dict[str, Field]:
    """As :func:`keys_of`, with the settings of tables below the one that holds them, as ``key.NAME.entry``."""
    found = {}
    for name, setting in keys_of(section).items():
        table = setting.metadata["table"]
        inside = keys_of(table) if table else {}
        found |= {name: setting} | {f"{name}.NAME.{entry}": each for entry, each in inside.items()}
    return found


def setting_at(settings: Mapping[str, Field], dotted: str) -> Field | None:
    """The setting of a key, ``section.key`` or, of one of its tables, ``section.key.NAME.entry``; None if none."""
    table, _, entry = table_entry(settings, dotted)
    return settings.get(dotted) if table is None else keys_of(table.metadata["table"]).get(entry)


def table_entry(settings: Mapping[str, Field], dotted: str) -> tuple[Field | None, str, str]:
    """Of the key of an entry of a table the setting that holds this, the table's name and the entry's; else None."""
    words = dotted.split(".")
    holder = settings.get(".".join(words[:2]))
    is_one = len(words) == 4 and holder is not None and holder.metadata["table"] and _TABLE_NAME.fullmatch(words[2])
    return (holder, words[2], words[3]) if is_one else (None, "", "")


def reads(*keys: str) -> Callable[[Callable], tuple[tuple[str, ...], Callable]]:
    """Make a rule of a check over several settings: the keys that it reads, and itself."""
    return lambda check: (keys, check)


def _describe(kind: Any) -> str:
    """A type in words, as an error message names it."""
    members = typing.get_args(kind)
    if kind in _NAMES:
        return _NAMES[kind]
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_describe, members))
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(members)}"
    plural = {str: "strings", int: "integers", float: "numbers"}[members[0]]
    return f"a list of {plural}" if members[1] is Ellipsis else f"a list of {len(members)} {plural}"


def convert(value: Any, kind: Any) -> Any:
    """The value as type ``kind``; a TypeError, which says in words what it should be, if it is of another type.

    Booleans are no integers, integers may stand for floats, lists become tuples; nan, infinity and control characters
    are no values.
    """
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    asked = ""
    if origin is types.UnionType:
        for member in members:
            with suppress(TypeError):
                return convert(value, member)
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [members[0]] * len(value) if members[1] is Ellipsis else members
            if len(kinds) == len(value):
                return tuple(map(convert, value, kinds))
    elif origin is Literal:
        if value in members:
            return value
        asked = hint(nearest(value, members)) if isinstance(value, str) else ""
    elif kind is float:
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
    elif kind is int and type(value) is int and not -LARGEST <= value <= LARGEST:
        asked = " below 2^63"
    elif kind is Lines and isinstance(value, str):
        if not _NO_TEXT.search(value.replace("\n", "").replace("\t", "")):
            return value
    elif type(value) is kind and not (kind is str and _NO_TEXT.search(value)):
        return value
    raise TypeError(_describe(kind) + asked)


def checked(dotted: str, value: Any, kind: Any, rule: Rule | None) -> Any:
    """The value of a key as its type; raises ValueError with the message if it has another or breaks the key's rule."""
    try:
        converted = convert(value, kind)
    except TypeError as error:
        raise ValueError(f"{dotted} = {shown(value)} must be {error}") from error
    if rule and not rule.holds(converted):
        raise ValueError(f"{dotted} = {shown(value)} {rule.text}")
    return converted


def shown(value: Any) -> str:
    """A value as an error message shows it: cut off where it is long, also where it is too large to be written."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integers of more than 4,300 digits
        return "…"
    return text if len(text) <= 500 else f"{text[:500]}…"


def parse_override(text: str, kind: Any) -> Any:
    """The value that ``text`` on the command line stands for, TOML or else a string; TypeError as :func:`convert`'s."""
    for word in (text, f'"{text}"') if kind is Lines else (text,):  # \n in a shell's word is a line break
        with suppress(TypeError, ValueError, RecursionError):
            read = tomllib.loads(f"value = {word}")
            if len(read) == 1:  # a line break in the text would begin a second key
                return convert(read["value"], kind)
    return convert(text, kind)


def plain(value: Any) -> Any:
    """A setting's value as JSON and TOML have it: tuples become lists, tables of them objects."""
    if isinstance(value, Tables):
        return {name: {entry: plain(each) for entry, each in table.items()} for name, table in value.to_dict().items()}
    return list(value) if isinstance(value, tuple) else value


def toml_value(value: Any) -> str:
    """A setting's value in TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {toml_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # TOML's strings, booleans and integers are JSON's


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
