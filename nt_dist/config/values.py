"""Values: from TOML or the command line to the type a setting has, and back to text."""

import json
import re
import sys
import tomllib
import types
import typing
from contextlib import suppress
from typing import Any, Literal

from nt_dist.config.keys import Rule
from nt_dist.config.names import hint, nearest

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
# Control characters, and undecodable bytes of a command line: a string with one could not be written again.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def _describe(kind: Any) -> str:
    """A type in words, as an error message names it."""
    members = typing.get_args(kind)
    if kind in _NAMES:
        return _NAMES[kind]
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_describe, members))
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(members)}"
    plural = {str: "strings", float: "numbers"}[members[0]]
    return f"a list of {plural}" if members[1] is Ellipsis else f"a list of {len(members)} {plural}"


def convert(value: Any, kind: Any) -> Any:
    """The value as type ``kind``.

    Booleans are no integers, integers may stand for floats, lists become tuples. Not-a-number, infinity and control
    characters are no values.

    Raises:
        TypeError: When the value is not of that type; says in words what it should be.
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
    elif type(value) is kind and not (kind is str and _NO_TEXT.search(value)):
        return value
    raise TypeError(_describe(kind) + asked)


def checked(dotted: str, value: Any, kind: Any, rule: Rule | None) -> Any:
    """The value of a key as its type; raises ValueError with the message if it has another or breaks the key's rule."""
    try:
        converted = convert(value, kind)
    except TypeError as error:
        raise ValueError(f"{dotted} = {value!r} must be {error}") from error
    if rule and not rule.holds(converted):
        raise ValueError(f"{dotted} = {value!r} {rule.text}")
    return converted


def parse_override(text: str, kind: Any) -> Any:
    """The value that ``text`` on the command line stands for: TOML where that has the right type, else a string.

    Raises:
        TypeError: When it can be neither.
    """
    with suppress(TypeError, ValueError, RecursionError):
        read = tomllib.loads(f"value = {text}")
        if len(read) == 1:  # a line break in the text would begin a second key
            return convert(read["value"], kind)
    return convert(text, kind)


def plain(value: Any) -> Any:
    """A setting's value as JSON and TOML have it: tuples become lists."""
    return list(value) if isinstance(value, tuple) else value


def toml_value(value: Any) -> str:
    """A setting's value in TOML."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # TOML's strings, booleans and integers are JSON's
