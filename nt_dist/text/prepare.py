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
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nt_dist.config import Config
from nt_dist.errors import DataError
from nt_dist.files import sync_folder, write_whole
from nt_dist.progress import ProgressBar
from nt_dist.text.chunks import Chunk, cut_into_chunks, part_size, read_part, tokenize
from nt_dist.text.indexed import IndexedWriter
from nt_dist.text.sources import Source, open_source
from nt_dist.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from nt_dist.text.workers import Crew

FORMAT = 1
RECORD = "prepared.json"
TOKENIZER = "tokenizer.model"
_WHOLE = "whole"
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
    by_path = isinstance(data.validation, str)

    def open_streams() -> dict[str, Source]:
        train = open_source(data)
        return {"train": train, "validation": open_source(data, "validation")} if by_path else {"train": train}

    streams = crew.agree(open_streams)
    tokenizer = find_tokenizer(config, streams["train"], crew)
    return prepare_streams(config, streams, None if by_path else data.validation, tokenizer, crew)


def find_tokenizer(config: Config, source: Source, crew: Crew | None = None) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``; an "auto" one is trained on the source when it is not there yet.

    Raises:
        DataError: If it cannot be used, or not be trained or written.
    """
    data, vocab_size, crew = config.data, config.model.vocab_size, crew or Crew()
    if data.tokenizer != "auto":
        return crew.agree(lambda: load_tokenizer(data.tokenizer, vocab_size))
    folder = prepared_folder(config)

    def train() -> Path:
        key = _key(["tokenizer", FORMAT, source.identity, vocab_size, data.max_documents])
        path = folder / f"tokenizer-{key}.model"
        if not path.exists():
            source.check()
            with _writing(folder):
                if not path.exists():  # another process may have made it while this one waited
                    _logger.info("training a tokenizer of %d pieces", vocab_size)
                    write_whole(path, train_tokenizer(source, vocab_size, data.max_documents), DataError)
        return path

    path = crew.on_first(train)
    return crew.agree(lambda: load_tokenizer(path, vocab_size))


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
    identities = crew.agree(lambda: {name: source.identity for name, source in streams.items()})
    made_from = [FORMAT, identities, fraction, config.data.max_documents, tokenizer.sha256]
    folder = prepared_folder(config)
    final = folder / _key(made_from)
    if crew.on_first(final.exists):
        return final
    crew.on_first(lambda: _check(streams))
    partial = final.with_suffix(".partial")
    with ExitStack() as stack:
        crew.on_first(lambda: stack.enter_context(_writing(folder)))
        if crew.on_first(final.exists):  # another process may have made it while this one waited
            return final
        try:
            parts = {}
            for name in reversed(streams):  # validation first: it is small, and as likely to be wrong
                made = crew.agree(lambda name=name: _make_parts(config, name, streams[name], partial, tokenizer, crew))
                parts[name] = sorted(itertools.chain.from_iterable(crew.gather(made)))
            crew.on_first(lambda: _merge(partial, final, parts, fraction, tokenizer))
        except DataError:
            if crew.rank == 0:
                shutil.rmtree(partial / _WHOLE, ignore_errors=True)
                if not any(partial.glob("*.npz")):  # nothing to go on from
                    shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


def _check(streams: dict[str, Source]) -> None:
    for source in streams.values():
        source.check()


def _make_parts(
    config: Config, name: str, source: Source, partial: Path, tokenizer: Tokenizer, crew: Crew
) -> list[str]:
    """This rank's parts of a stream; returns their names."""
    with _os_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    total = sum(unit.size for unit in source.units)
    processes = config.data.num_workers if not total or total > part_size(source) else 0  # one part needs no helpers
    chunks = cut_into_chunks(source, name, config.data.max_documents if name == "train" else 0, crew)
    documents = characters = 0
    title = f"preparing {name} texts" + (f" (rank {crew.rank})" if crew.size > 1 else "")
    with ProgressBar(total, title=title, counts=False) as progress:

        def report(chunk: Chunk) -> None:
            nonlocal documents, characters
            documents += len(chunk.texts)
            characters += sum(map(len, chunk.texts))
            progress.update(chunk.position, f"{documents:,} documents, {characters / 1e6:,.1f} M characters")

        return tokenize(chunks, partial, tokenizer, processes, report)


def choose_validation(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are held out: the round(fraction * documents) with the smallest hashes, at least one.

    A choice by content: it does not change with the order of files, and copies of one text fall on the same side (but
    for those at the very border).

    Args:
        hashes: Of all documents. [documents]
        fraction: ``data.validation``.

    Returns:
        True for each document held out. [documents]

    Raises:
        DataError: If there are fewer than two documents.
    """
    count = len(hashes)
    if count < 2:
        raise DataError(
            f"data.validation = {fraction}: a share of the documents can be held out of two or more, the corpus has "
            f"{count}; give data.validation the path of other texts"
        )
    held_out = np.zeros(count, dtype=bool)
    held_out[np.argsort(hashes, kind="stable")[: min(max(round(fraction * count), 1), count - 1)]] = True
    return held_out


def _merge(
    partial: Path, final: Path, parts: dict[str, list[str]], fraction: float | None, tokenizer: Tokenizer
) -> None:
    """Join parts into the prepared files and give their folder its name."""
    whole = partial / _WHOLE
    outputs = list(parts) if fraction is None else ["train", "validation"]
    with _os_errors(final), ExitStack() as stack:
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        writers = {name: IndexedWriter(whole / name, tokenizer.vocab_size) for name in outputs}
        for writer in writers.values():
            stack.callback(writer.abandon)
        for stream, names in parts.items():
            paths = [partial / f"{name}.npz" for name in names]
            if fraction is None:
                for path in paths:
                    part = read_part(path)
                    writers[stream].add(part.tokens, part.lengths)
            else:
                _split(paths, fraction, writers["train"], writers["validation"])
        documents = {name: writer.num_documents for name, writer in writers.items()}
        tokens = {name: writer.num_tokens for name, writer in writers.items()}
        files = {}
        for writer in writers.values():
            files |= writer.close()
        write_whole(whole / TOKENIZER, tokenizer.data, DataError)
        record = {"format": FORMAT, "vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer.sha256}
        record |= {"documents": documents, "tokens": tokens, "files": files}
        write_whole(whole / RECORD, json.dumps(record, indent=1), DataError)
        os.rename(whole, final)
        sync_folder(final.parent)
        shutil.rmtree(partial, ignore_errors=True)


def _split(paths: list[Path], fraction: float, train: IndexedWriter, validation: IndexedWriter) -> None:
    """Share the documents of parts out between training and validation, each in their order."""
    hashes = [read_part(path).hashes for path in paths]
    held_out = choose_validation(np.concatenate(hashes) if hashes else np.zeros(0, dtype="<u8"), fraction)
    first = 0
    for path in paths:
        part = read_part(path)
        out = held_out[first : first + len(part.lengths)]  # [documents]
        out_tokens = np.repeat(out, part.lengths)  # [tokens]
        train.add(part.tokens[~out_tokens], part.lengths[~out])
        validation.add(part.tokens[out_tokens], part.lengths[out])
        first += len(part.lengths)


def _key(value: Any) -> str:
    """A short name for plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Be the only process that prepares in a folder; a second one waits."""
    with ExitStack() as stack:
        with _os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("%s: another process is preparing data here; waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks; parts and renames are still whole
            _logger.warning(
                "%s: cannot be locked (%s): start no second run here before this one", folder, error.strerror
            )
        yield


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Name the path when writing fails."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be written: {error.strerror or error}") from error
