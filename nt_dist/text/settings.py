"""The section ``[data]`` of families that read text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nt_dist.config.family import Corruptions
from nt_dist.config.keys import FRACTION, NOT_EMPTY, SHARE, Rule, at_least, free, schedule
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


@dataclass(frozen=True)
class Data:
    """The corpus and how it becomes sequences of tokens."""

    source: Literal["stdlib", "text", "jsonl", "parquet", "hf"] = schedule(
        "stdlib", "stdlib (this Python's own library), text, jsonl or parquet files, or hf (Hugging Face datasets)."
    )
    path: str | tuple[str, ...] = schedule(
        "", "Files, folders or patterns, one or a list; for hf the name of the dataset."
    )
    subset: str = schedule("", "For hf: the configuration of the dataset.")
    text_key: str = schedule("text", "For jsonl, parquet and hf: the field that holds the text.", NOT_EMPTY)
    max_bad_share: float = free(0.001, "Share of documents that are no text and may be passed over.", FRACTION)
    validation: str | float = schedule(
        0.02,
        "Path of the validation texts (for hf: name of a split), or a share of the documents.",
        data.path_or_share("a path, or a share of the documents"),
    )
    tokenizer: str = free(
        "auto",
        'A sentencepiece .model, a tokenizer.json, or "auto": trained on the corpus at model.vocab_size and kept.',
        NOT_EMPTY,
    )
    layout: Literal["packed", "rows"] = schedule(
        "packed", "packed (documents one after the other, cut into windows) or rows (one document a row, padded)."
    )
    num_workers: int = free(2, "Processes that tokenize and threads that load.", at_least(0))
    prepared: str = free("", "Folder of the prepared files; empty: the folder data in run.dir.")
    check: Literal["sample", "all"] = free(
        "sample", "What every rank compares of the prepared files with their sums: sample (of blocks) or all."
    )
    max_documents: int = schedule(0, "Read only so many documents; 0: all.", at_least(0))


RULES = (data.source_has_a_path,)


def ignored_settings(config: Config) -> Iterator[str]:
    source = config.data.source
    yield from data.ignored_settings(config)
    if source == "text" or (source == "stdlib" and not isinstance(config.data.validation, str)):
        yield from ignored(config, f"data.source = {source!r}", "data.text_key")


def paths(config: Config) -> list[tuple[str, str]]:
    found, tokenizer = data.paths(config), config.data.tokenizer
    return found if tokenizer == "auto" else [*found, ("data.tokenizer", tokenizer)]
