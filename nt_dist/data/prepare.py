"""From texts to prepared files, resumable and never half-written.

    <folder>/tokenizer-<key>.model     of data.tokenizer = "auto"
    <folder>/<key>/                    prepared data, renamed to this name when whole:
        train.bin train.idx validation.bin validation.idx tokenizer.model prepared.json
    <folder>/<key>.partial/            parts on the way there

A key is a hash of all that decides the contents, so data of other texts or another tokenizer is other data, never data
to be overwritten; sequence length, layout and everything about training do not matter to it.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..errors import DataError
from .crew import Crew
from .indexed import IndexedWriter
from .parts import cut_into_chunks, part_size, read_part, tokenize
from .progress import Progress
from .sources import Source, open_source
from .tokenizer import Tokenizer, load_tokenizer, train_tokenizer

FORMAT = 1
RECORD = "prepared.json"
_logger = logging.getLogger(__name__)


def prepared_folder(config: Config) -> Path:
    """``data.prepared``, or the folder data in ``run.dir``."""
    return Path(config.data.prepared).expanduser() if config.data.prepared else Path(config.run.dir) / "data"


def prepare_data(config: Config, crew: Crew | None = None) -> Path:
    """Prepare the tokenizer and the texts of training and validation, as far as they are not there yet.

    Args:
        config: The settings.
        crew: The processes that share the work; all call this. They must see the same files.

    Returns:
        The folder that holds them.

    Raises:
        DataError: For input that cannot be used, or files that cannot be written.
        ConfigError: For a data.path that its source cannot have.
    """
    data, crew = config.data, crew or Crew()
    streams = {"train": open_source(data)}
    if isinstance(data.validation, str):
        streams["validation"] = open_source(data, "validation")
    tokenizer = find_tokenizer(config, streams["train"], crew)
    fraction = None if isinstance(data.validation, str) else data.validation
    return prepare_streams(config, streams, fraction, tokenizer, crew)


def find_tokenizer(config: Config, source: Source, crew: Crew | None = None) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``; an "auto" one is trained on the source when it is not there yet.

    Raises:
        DataError: If it cannot be used, or not be trained or written.
    """
    data, vocab_size, crew = config.data, config.model.vocab_size, crew or Crew()
    if data.tokenizer != "auto":
        return load_tokenizer(data.tokenizer, vocab_size)
    folder = prepared_folder(config)

    def train() -> str:
        path = folder / f"tokenizer-{_key(['tokenizer', FORMAT, source.identity, vocab_size, data.max_documents])}.model"
        if not path.exists():
            source.check()
            with _writing(folder):
                if not path.exists():
                    _logger.info("training a tokenizer of %d pieces", vocab_size)
                    _write(path, train_tokenizer(source, vocab_size, data.max_documents))
        return str(path)

    return load_tokenizer(crew.on_first(train), vocab_size)


def prepare_streams(
    config: Config, streams: dict[str, Source], fraction: float | None, tokenizer: Tokenizer, crew: Crew | None = None
) -> Path:
    """Prepare the texts of some streams, as far as they are not there yet.

    Args:
        config: The settings.
        streams: Texts by the name of the files to make; ``data.max_documents`` holds for "train".
        fraction: Share of the documents of "train" that becomes "validation"; None: none.
        tokenizer: Makes the tokens.
        crew: The processes that share the work.

    Returns:
        The folder that holds the files.

    Raises:
        DataError: For input that cannot be used, or files that cannot be written.
    """
    crew = crew or Crew()
    identities = {name: source.identity for name, source in streams.items()}
    made_from = [FORMAT, identities, fraction, config.data.max_documents, tokenizer.sha256]
    folder = prepared_folder(config)
    final = folder / _key(made_from)
    if crew.on_first(final.exists):
        return final
    crew.on_first(lambda: [source.check() for source in streams.values()])
    partial = final.with_suffix(".partial")
    with _writing(folder) if crew.rank == 0 else _nothing():
        if not crew.on_first(final.exists):  # another process may have made it while this one waited
            try:
                parts = {}
                for name in reversed(streams):  # validation first: it is small, and as likely to be wrong
                    made = crew.agree(lambda name=name: _make_parts(config, name, streams[name], partial, tokenizer, crew))
                    parts[name] = sorted(sum(crew.gather(made), []))
                crew.on_first(lambda: _merge(partial, final, parts, fraction, tokenizer))
            except DataError:
                if crew.rank == 0 and not any(partial.glob("*.npz")):  # nothing to go on from
                    shutil.rmtree(partial, ignore_errors=True)
                raise
    return final


def _make_parts(
    config: Config, name: str, source: Source, partial: Path, tokenizer: Tokenizer, crew: Crew
) -> list[str]:
    """This rank's parts of a stream; returns their names."""
    with _os_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    total = sum(unit.size for unit in source.units)
    processes = config.data.num_workers if not total or total > part_size(source) else 0
    chunks = cut_into_chunks(source, name, config.data.max_documents if name == "train" else 0, crew)
    documents = characters = 0

    with Progress(f"preparing {name} texts" + (f" (rank {crew.rank})" if crew.size > 1 else ""), total) as progress:

        def report(chunk) -> None:
            nonlocal documents, characters
            documents += len(chunk.texts)
            characters += sum(map(len, chunk.texts))
            progress.update(chunk.position, f"{documents:,} documents, {characters / 1e6:,.1f} M characters")

        return tokenize(chunks, partial, tokenizer, processes, report)


def _merge(
    partial: Path, final: Path, parts: dict[str, list[str]], fraction: float | None, tokenizer: Tokenizer
) -> None:
    """Join parts into the prepared files and give their folder its name."""
    whole = partial / "whole"
    with _os_errors(final):
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        writers = {name: IndexedWriter(whole / name, tokenizer.vocab_size) for name in ("train", "validation")}
        if fraction is None and "train" not in parts:
            writers.pop("train").abandon()
        ...


def _key(value: Any) -> str:
    """A short name for plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
