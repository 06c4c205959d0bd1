"""What a row of jsonl, Parquet or a data set says: a field, a template over several, or a conversation.

A conversation passes as text too, JSON of [role, content] pairs, until it becomes tokens (Tokenizer.conversation).
"""

import json
from typing import Any

from nt_dist.errors import DataError
from nt_dist.text.settings import Messages, template

ANSWERS = "assistant"  # the role whose messages a model learns to write


def parse(line: bytes, where: str) -> Any:
    """The row of a line of jsonl; DataError, which names ``where`` it is, if it is none."""
    try:
        return json.loads(line, parse_int=lambda digits: int(digits[:18]))  # numbers are no texts, however long
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text: {error.reason}"
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        problem = "is not JSON that can be read: nested too deeply"
    raise DataError(f"{where}: {problem}")


def read_field(record: Any, key: str, where: str) -> str:
    """The text of a row by ``data.text_key``, or its conversation by ``data.messages_key``; DataError if none."""
    setting, parts = setting_of(key), template(key)
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be an object with the field {setting}")
    for name in fields_of(key):
        if name not in record:
            which = f"{name!r} of {setting}" if parts else setting
            raise DataError(f"{where}: has no field {which}, only {', '.join(map(repr, record)) or 'none'}")
    if parts:
        text = "".join(
            literal + (_filled(record[name], f"{where}: the field {name!r} of {setting}") if name else "")
            for literal, name in parts
        )
    elif isinstance(key, Messages):
        text = _conversation(record[key], f"{where}: the field {setting}")
    else:
        text = _text(record[key], f"{where}: the field {setting}")
    return text.encode("utf-8", "replace").decode()  # JSON can hold halves of surrogate pairs, UTF-8 cannot


def setting_of(key: str) -> str:
    """The setting that a key is of, as messages say it."""
    return f"data.{'messages' if isinstance(key, Messages) else 'text'}_key = {str(key)!r}"


def fields_of(key: str) -> list[str]:
    """The fields that ``data.text_key`` reads, each once."""
    return list(dict.fromkeys(name for _, name in template(key) if name)) or [key]


def _conversation(value: Any, where: str) -> str:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise DataError(f"{where} must be a list of {{role, content}}")
    pairs = [[each.get("role"), each.get("content")] for each in value]
    for number, pair in enumerate(pairs):
        if not all(isinstance(each, str) for each in pair) or not pair[0]:
            raise DataError(f"{where}: its message {number} must have a role and a content that are texts")
    if not any(role == ANSWERS and content for role, content in pairs):
        raise DataError(f"{where} has no answer: no message of the role {ANSWERS!r}")
    return json.dumps(pairs, ensure_ascii=False)


def plain_text(text: str, is_chat: bool) -> str:
    """A text, or what is said in a conversation."""
    return "\n".join(content for _, content in json.loads(text)) if is_chat else text


def _filled(value: Any, where: str) -> str:
    """What a template has of a field: a text, or a number as Python writes it."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(value, where)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bytes):  # Spark writes texts as such
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8 text: {error.reason}") from error
    if not isinstance(value, str):
        raise DataError(f"{where} must be text, not {type(value).__name__}")
    return value


def columns_of(types: Any, key: str) -> tuple[Any, ...]:
    """What tells a type of columns that may hold texts, which Spark writes as bytes, or conversations."""
    if isinstance(key, Messages):
        return types.is_list, types.is_large_list
    numbers = (types.is_integer, types.is_floating) if template(key) else ()
    texts = types.is_string, types.is_large_string, types.is_string_view
    return *numbers, *texts, types.is_binary, types.is_large_binary, types.is_binary_view, types.is_null
