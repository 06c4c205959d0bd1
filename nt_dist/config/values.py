"""Values: from TOML or the command line to the type a setting has, and back to text."""

import json
import math
import tomllib
import types
import typing
from typing import Any

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def describe(kind: Any) -> str:
    """A type in words, as an error message names it."""
    if kind in _NAMES:
        return _NAMES[kind]
    members = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return " or ".join(describe(member) for member in members)
    plural = {str: "strings", float: "numbers"}[members[0]]
    return f"a list of {plural}" if members[1] is Ellipsis else f"a list of {len(members)} {plural}"


def convert(value: Any, kind: Any) -> Any:
    """The value as type ``kind``.

    Booleans are no integers, integers may stand for floats, lists become tuples. Not-a-number, infinity and control
    characters are no values.

    Raises:
        TypeError: When the value is not of that type.
    """
    if isinstance(kind, types.UnionType):
        for member in typing.get_args(kind):
            try:
                return convert(value, member)
            except TypeError:
                continue
    elif typing.get_origin(kind) is tuple:
        members = typing.get_args(kind)
        if isinstance(value, list | tuple):
            if members[1] is Ellipsis:
                return tuple(convert(item, members[0]) for item in value)
            if len(value) == len(members):
                return tuple(convert(item, member) for item, member in zip(value, members, strict=True))
    elif kind is float:
        if type(value) in (int, float) and _is_finite(value):
            return float(value)
    elif type(value) is kind and (kind is not str or _is_text(value)):
        return value
    raise TypeError(describe(kind))


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer too large for a float
        return False


def _is_text(value: str) -> bool:
    """No control characters, and no undecodable bytes of a command line: such a string could not be written again."""
    return not any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in value)


def parse_override(text: str, kind: Any) -> Any:
    """The value that ``text`` on the command line stands for: TOML where that has the right type, else a string.

    Raises:
        TypeError: When it can be neither.
    """
    try:
        read = tomllib.loads(f"value = {text}")
        if len(read) == 1:  # a line break in the text would begin a second key
            return convert(read["value"], kind)
    except (TypeError, ValueError, RecursionError):
        pass
    return convert(text, kind)


def plain(value: Any) -> Any:
    """A setting's value as JSON and TOML have it: tuples become lists."""
    return list(value) if isinstance(value, tuple) else value


def toml_value(value: Any) -> str:
    """A plain value in TOML."""
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # TOML's strings, booleans and integers are JSON's
