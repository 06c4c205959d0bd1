"""The section ``[data]`` of families that read text."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any, Literal

from nt_dist.config.family import Corruptions
from nt_dist.config.keys import (
    FRACTION,
    NO_TABLES,
    NOT_EMPTY,
    POSITIVE,
    SHARE,
    Lines,
    Rule,
    Tables,
    at_least,
    free,
    reads,
    schedule,
)
from nt_dist.config.rules import ignored
from nt_dist.config.settings import Config
from nt_dist.data import settings as data

CORRUPTIONS = Corruptions(
    {
        "corrupt": "{:.3g} of each sequence's tokens in each other's places",
        "misspell": "{:.3g} of its characters mistyped",
    },
    level="share",
    rule=Rule("must be a number in (0, 1]", SHARE.holds),
    default=0.1,
    levels=(0.05, 0.1, 0.2, 0.4),
)
"""What an evaluation may do to a text."""
SMALLEST_SHARE = 1e-6  # of a source: the order of samples counts in 2^32 parts


class Messages(str):
    """The name of a field that holds a conversation, where that of a text would stand."""


def row_key(data: "Texts") -> str:
    """What to read of a row: ``data.text_key``, or the Messages of ``data.messages_key``."""
    return Messages(data.messages_key) if data.messages_key else data.text_key


def template(text_key: str) -> list[tuple[str, str | None]]:
    """The parts of ``data.text_key``: literal text and the field that follows it, or None at its end. Empty where the
    whole is the name of a field; ValueError if it is neither."""
    if isinstance(text_key, Messages) or not {"{", "}"} & set(text_key):
        return []
    parts = list(Formatter().parse(text_key))
    if any(name == "" or shape or how for _, name, shape, how in parts) or not any(name for _, name, *_ in parts):
        raise ValueError
    return [(literal, name) for literal, name, *_ in parts]


def _is_text_key(value: str) -> bool:
    with suppress(ValueError):
        return value != "" and template(value) is not None
    return False


_TEXT_KEY = Rule("must be a field, or a template of fields in braces ({{ and }} are braces themselves)", _is_text_key)


@dataclass(frozen=True)
class Texts:
    """Where texts come from: what one source has of its own, and what those of a mixture leave out."""

    source: Literal["stdlib", "text", "jsonl", "parquet", "hf"] = schedule(
        "stdlib", "stdlib (this Python's own library), text, jsonl or parquet files, or hf (Hugging Face datasets)."
    )
    path: str | tuple[str, ...] = schedule(
        "", "Files, folders or patterns, one or a list; for hf the name of the dataset."
    )
    subset: str = schedule("", "For hf: the configuration of the dataset.")
    text_key: Lines = schedule(  # noqa: RUF009 (its values are plain strings)
        "text",
        'For jsonl, parquet and hf: the field of the text, or a template, as "{question}\\n{answer}".',
        _TEXT_KEY,
    )
    messages_key: str = schedule(
        "",
        "For jsonl, parquet and hf, in place of text_key: the field of conversations, lists of {role, content}, of "
        "which only the assistant's answers count in the loss.",
    )
    validation: str | float = schedule(
        0.02,
        "Path of the validation texts (for hf: name of a split), or a share of the documents.",
        data.path_or_share("a path, or a share of the documents"),
    )
    max_documents: int = schedule(0, "Read only so many documents; 0: all.", at_least(0))
    prepared: str = free("", "Folder of the prepared files; empty: the folder data in run.dir.")


@dataclass(frozen=True)
class Weighted(Texts):
    """One source of a mixture."""

    weight: float = schedule(
        1.0, "Samples drawn of it, in ratio to the others' weights: shares, or numbers of tokens.", POSITIVE
    )


@dataclass(frozen=True)
class Data(Texts):
    """The corpus and how it becomes sequences of tokens."""

    sources: Tables = schedule(  # noqa: RUF009 (it is immutable)
        NO_TABLES, "Several sources, a table each, mixed by weight; what one leaves out is as here.", table=Weighted
    )
    max_bad_share: float = free(0.001, "Share of documents that are no text and may be passed over.", FRACTION)
    tokenizer: str = free(
        "auto",
        'A sentencepiece .model, a tokenizer.json, or "auto": trained on the corpus at model.vocab_size and kept.',
        NOT_EMPTY,
    )
    layout: Literal["packed", "rows"] = schedule(
        "packed", "packed (documents one after the other, cut into windows) or rows (one document a row, padded)."
    )
    num_workers: int = free(2, "Processes that tokenize and threads that load.", at_least(0))
    check: Literal["sample", "all"] = free(
        "sample", "What every rank compares of the prepared files with their sums: sample (of blocks) or all."
    )


def by_source(config: Config) -> dict[str, Config]:
    """The config of each source of a mixture, as if it were the only one, by its name; empty where there is one."""
    return {
        name: replace(config, data=replace(config.data, sources=NO_TABLES, **_without_weight(dict(given))))
        for name, given in config.data.sources
    }


def _without_weight(given: dict[str, Any]) -> dict[str, Any]:
    return {entry: value for entry, value in given.items() if entry != "weight"}


def shares(config: Config) -> dict[str, float]:
    """Share of the samples that each source of a mixture gives, by its name; they sum to 1."""
    return shares_of(config.data.sources.to_dict())


def shares_of(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """As :func:`shares`, of the tables of ``data.sources``."""
    weights = {name: given.get("weight", 1.0) for name, given in tables.items()}
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def unified(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables of ``data.sources`` in one spelling for those that say the same."""
    share = shares_of(tables)
    placed = {name: data.without_folders(given) | {"weight": round(share[name], 12)} for name, given in tables.items()}
    return {name: {key: each for key, each in given.items() if key != "prepared"} for name, given in placed.items()}


@reads("data.source", "data.path", "data.sources")
def _sources_have_paths(config: Config) -> Iterator[str]:
    _, has_a_path = data.source_has_a_path
    for place, one in _places(config):
        yield from (f"{place}{problem}" for problem in has_a_path(one))


@reads("data.sources")
def _shares_can_be_drawn(config: Config) -> Iterator[str]:
    for name, share in shares(config).items():
        if share < SMALLEST_SHARE:
            rule = f"must be at least {SMALLEST_SHARE:g} of the sum of the weights"
            yield f"data.sources.{name}.weight = {dict(dict(config.data.sources)[name])['weight']} {rule}"


def _places(config: Config) -> list[tuple[str, Config]]:
    """What to call each source in a message about its settings, and its config."""
    return [(f"[data.sources.{name}] ", one) for name, one in by_source(config).items()] or [("", config)]


RULES = (_sources_have_paths, _shares_can_be_drawn)


def ignored_settings(config: Config) -> Iterator[str]:
    if not config.data.sources:
        yield from _ignored_settings(config)
    for (name, given), one in zip(config.data.sources, by_source(config).values(), strict=True):
        own = tuple(f"data.{entry} " for entry, _ in given)  # what it has from [data] is another's
        yield from (f"[data.sources.{name}] {each}" for each in _ignored_settings(one) if each.startswith(own))


def _ignored_settings(config: Config) -> Iterator[str]:
    source = config.data.source
    yield from data.ignored_settings(config)
    if source == "text" or (source == "stdlib" and not isinstance(config.data.validation, str)):
        yield from ignored(config, f"data.source = {source!r}", "data.text_key", "data.messages_key")
    elif config.data.messages_key:
        yield from ignored(config, f"data.messages_key = {config.data.messages_key!r}", "data.text_key")


def paths(config: Config, names: Collection[str] = ()) -> list[tuple[str, str]]:
    """The key and path of what the config names; of a mixture's sources all, or those of some ``names``."""
    found, tokenizer = data.paths(config), config.data.tokenizer
    if config.data.sources:
        found = []
        for name, given in config.data.sources:
            for key, path in data.paths(by_source(config)[name]) if name in (names or [name]) else ():
                entry = key.rpartition(".")[2]
                found.append((f"data.sources.{name}.{entry}" if entry in dict(given) else key, path))
    return found if tokenizer == "auto" else [*found, ("data.tokenizer", tokenizer)]
