"""The section ``[data]`` of families that read text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nt_dist.config.family import Corruptions
from nt_dist.config.keys import NOT_EMPTY, Rule, at_least, free, reads, schedule
from nt_dist.config.rules import ignored
from nt_dist.config.settings import Config

_VALIDATION = Rule(
    "must be a path, or a share of the documents in (0, 1)",
    lambda value: value != "" if isinstance(value, str) else 0 < value < 1,
)


CORRUPTIONS = Corruptions(
    {
        "corrupt": "{:.3g} of each sequence's tokens in each other's places",
        "misspell": "{:.3g} of its characters mistyped",
    },
    level="share",
    rule=Rule("must be a number in (0, 1]", lambda value: 0 < value <= 1),
    default=0.1,
    levels=(0.05, 0.1, 0.2, 0.4),
)
"""What an evaluation may do to a text."""


@dataclass(frozen=True)
class Data:
    """The corpus and how it becomes sequences of tokens."""

    source: Literal["stdlib", "text", "jsonl", "parquet", "hf"] = schedule(
        "stdlib", "stdlib (this Python's own library), text, jsonl or parquet files, or hf (Hugging Face datasets)."
    )
    path: str | tuple[str, ...] = free("", "Files, folders or patterns, one or a list; for hf the name of the dataset.")
    subset: str = schedule("", "For hf: the configuration of the dataset.")
    text_key: str = schedule("text", "For jsonl, parquet and hf: the field that holds the text.", NOT_EMPTY)
    validation: str | float = free(
        0.02, "Path of the validation texts (for hf: name of a split), or a share of the documents.", _VALIDATION
    )
    tokenizer: str = free(
        "auto", 'A sentencepiece .model, or "auto": trained on the corpus at model.vocab_size and kept.', NOT_EMPTY
    )
    layout: Literal["packed", "rows"] = schedule(
        "packed", "packed (documents one after the other, cut into windows) or rows (one document a row, padded)."
    )
    num_workers: int = free(2, "Processes that tokenize and threads that load.", at_least(0))
    prepared: str = free("", "Folder of the prepared files; empty: the folder data in run.dir.")
    max_documents: int = schedule(0, "Read only so many documents; 0: all.", at_least(0))


@reads("data.source", "data.path")
def _source_has_a_path(config: Config) -> Iterator[str]:
    path, source = config.data.path, config.data.source
    if source == "stdlib":
        return
    if not path or (not isinstance(path, str) and "" in path):
        what = "a dataset" if source == "hf" else "files, folders or patterns"
        yield f"data.path = {path!r} must name {what} with data.source = {source!r}"
    elif source == "hf" and not isinstance(path, str):
        yield f"data.path = {list(path)} must be one name with data.source = 'hf'"


RULES = (_source_has_a_path,)


def ignored_settings(config: Config) -> Iterator[str]:
    source, because = config.data.source, f"data.source = {config.data.source!r}"
    if source == "stdlib":
        yield from ignored(config, because, "data.path")
    if source != "hf":
        yield from ignored(config, because, "data.subset")
    if source == "text" or (source == "stdlib" and not isinstance(config.data.validation, str)):
        yield from ignored(config, because, "data.text_key")


def paths(config: Config) -> list[tuple[str, str]]:
    data, found = config.data, []
    if data.source in ("text", "jsonl", "parquet"):
        found += [("data.path", path) for path in ([data.path] if isinstance(data.path, str) else data.path)]
    if data.source != "hf" and isinstance(data.validation, str):  # for hf it is the name of a split
        found.append(("data.validation", data.validation))
    if data.tokenizer != "auto":
        found.append(("data.tokenizer", data.tokenizer))
    return found
