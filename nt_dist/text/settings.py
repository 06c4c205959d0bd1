"""The section ``[data]`` of families that read text."""

from collections.abc import Iterator
from dataclasses import dataclass

from nt_dist.config.ignored import named
from nt_dist.config.keys import FREE, SCHEDULE, Rule, at_least, key, one_of, reads
from nt_dist.config.settings import Config

_VALIDATION = Rule(
    "must be a path, or a share of the documents in (0, 1)",
    lambda value: value != "" if isinstance(value, str) else 0 < value < 1,
)
_NOT_EMPTY = Rule("must not be empty", lambda value: value != "")


@dataclass(frozen=True)
class Data:
    """The corpus and how it becomes sequences of tokens."""

    source: str = key(
        "stdlib",
        SCHEDULE,
        "stdlib (the running Python's own library), text, jsonl or parquet files, or hf (Hugging Face datasets).",
        one_of("stdlib", "text", "jsonl", "parquet", "hf"),
    )
    path: str | tuple[str, ...] = key(
        "", FREE, "Files, folders or patterns, one or a list; for hf the name of the dataset."
    )
    subset: str = key("", SCHEDULE, "For hf: the configuration of the dataset.")
    text_key: str = key("text", SCHEDULE, "For jsonl, parquet and hf: the field that holds the text.", _NOT_EMPTY)
    validation: str | float = key(
        0.02,
        FREE,
        "Path of the validation texts (for hf: the name of a split), or a share of the documents.",
        _VALIDATION,
    )
    tokenizer: str = key(
        "auto",
        FREE,
        'A sentencepiece .model, or "auto": trained on the corpus at model.vocab_size and kept.',
        _NOT_EMPTY,
    )
    layout: str = key(
        "packed",
        SCHEDULE,
        "packed (documents one after the other, cut into windows) or rows (one document a row, padded).",
        one_of("packed", "rows"),
    )
    num_workers: int = key(2, FREE, "Processes that tokenize and threads that load.", at_least(0))
    prepared: str = key("", FREE, "Folder of the prepared files; empty: the folder data in run.dir.")
    max_documents: int = key(0, SCHEDULE, "Read only so many documents; 0: all.", at_least(0))


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


def ignored(config: Config) -> Iterator[str]:
    """See :meth:`nt_dist.config.family.Family.ignored`."""
    data = config.data
    because = f"data.source = {data.source!r}"
    if data.source == "stdlib":
        yield from named(config, "data", ("path", "subset"), because)
    elif data.source != "hf":
        yield from named(config, "data", ("subset",), because)
    if data.source == "text" or (data.source == "stdlib" and not isinstance(data.validation, str)):
        yield from named(config, "data", ("text_key",), because)


def paths(config: Config) -> list[tuple[str, str]]:
    """See :meth:`nt_dist.config.family.Family.paths`."""
    data, found = config.data, []
    if data.source in ("text", "jsonl", "parquet"):
        found += [("data.path", path) for path in ([data.path] if isinstance(data.path, str) else data.path)]
    if data.source != "hf" and isinstance(data.validation, str):  # for hf it is the name of a split
        found.append(("data.validation", data.validation))
    if data.tokenizer != "auto":
        found.append(("data.tokenizer", data.tokenizer))
    return found
