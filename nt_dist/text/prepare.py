"""Prepared texts: made where they are missing, resumable and never half-written, and opened as samples.

    <folder>/tokenizer-<key>.model     of data.tokenizer = "auto"
    <folder>/<key>/                    prepared data, renamed to this name when whole:
        train.bin train.idx validation.bin validation.idx tokenizer.model origin.json prepared.json (and train.mask …)
    <folder>/<key>.partial/            chunks on the way there

A key is a hash of what the config says of the contents and of the tokenizer, so data of other texts or another
tokenizer is other data, never data to be overwritten; sequence length, layout and everything about training do not
matter to it. What is prepared is enough for everything but preparing (origin.py).
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from nt_dist.config import Config
from nt_dist.data.samples import Exchange, OpenData
from nt_dist.errors import DataError
from nt_dist.files import FileEntry, check_plain, lock, reading, sync_folder, write_whole, writing
from nt_dist.messages import ProgressBar
from nt_dist.text.blocks import BLOCKS, check_blocks
from nt_dist.text.chunks import Patience, TokenizedChunk, chunk_size, cut_into_chunks, read_chunk, tokenize
from nt_dist.text.communicator import Communicator
from nt_dist.text.indexed import MASK, IndexedTokens, write_indexed, write_mask
from nt_dist.text.origin import (
    ORIGIN,
    RECORD,
    compare,
    described,
    find,
    looks_alike,
    origin_of,
    prepared_folder,
    short_hash,
    sources_of,
)
from nt_dist.text.samples import TextSamples
from nt_dist.text.settings import row_key
from nt_dist.text.sources import BadDocuments, Source, open_files, open_source
from nt_dist.text.tokenizer import Tokenizer, load_tokenizer, read_tokenizer, train_tokenizer

_FORMAT = 1
_TOKENIZER = "tokenizer.model"
_WHOLE = "whole"
_REMEDY = "remove its folder to prepare it again"
_ALONE = Communicator()
_logger = logging.getLogger(__name__)


class Record(BaseModel):
    """What prepared.json holds."""

    format: int
    vocab_size: int
    tokenizer_sha256: str
    documents: dict[str, int]
    tokens: dict[str, int]
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """One hash for what training reads."""
        names = ("train.bin", "train.idx", f"train{MASK}")
        read = [self.files[name].sha256 for name in names if name in self.files]
        return hashlib.sha256("\n".join([*read, self.tokenizer_sha256]).encode()).hexdigest()


def prepare_data(config: Config, communicator: Communicator = _ALONE) -> Path:
    """Prepare the tokenizer and the texts of training and validation where they are not there; return their folder.

    All processes of the communicator call this and share the work. Where the texts have changed since, that is a
    warning. DataError for input that cannot be used, or files that cannot be written.
    """

    def look() -> Path | None:
        if found := find(config):
            compare(config, found)
        return found

    if found := communicator.on_first(look):
        return found
    streams = communicator.agree(lambda: sources_of(config))
    tokenizer = find_tokenizer(config, communicator)
    return prepare_streams(config, described(config), streams, tokenizer, communicator)


def find_tokenizer(config: Config, communicator: Communicator = _ALONE) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``; an "auto" one is trained on the training texts when it is not there yet."""
    data, vocab_size, folder = config.data, config.model.vocab_size, prepared_folder(config)

    def train() -> Path:
        says = {key: value for key, value in described(config).items() if key != "validation"}
        path = folder / f"tokenizer-{short_hash(['tokenizer', _FORMAT, says])}.model"
        if not path.exists():
            source = open_source(data)
            source.check()
            with locked(folder):
                if not path.exists():  # another process may have made it while this one waited
                    _logger.info("training a tokenizer of %d pieces", vocab_size)
                    write_whole(path, train_tokenizer(source, vocab_size, data.max_documents), DataError)
        return path

    path = communicator.on_first(train) if data.tokenizer == "auto" else data.tokenizer
    return communicator.agree(lambda: load_tokenizer(path, vocab_size))


def prepare_streams(
    config: Config, says: Any, streams: dict[str, Source], tokenizer: Tokenizer, communicator: Communicator = _ALONE
) -> Path:
    """As :func:`prepare_data` the texts of streams, by the name of the files to make; ``says`` (plain values) tells
    them from others. ``data.max_documents`` holds for "train"; without "validation", a share of its documents becomes
    that."""
    on_first = communicator.on_first
    fraction = None if "validation" in streams else config.data.validation
    folder = prepared_folder(config)
    final = folder / short_hash([_FORMAT, says, tokenizer.sha256])
    if on_first(final.exists):
        return final
    made_from = communicator.agree(lambda: origin_of(says, streams, tokenizer.sha256))
    on_first(lambda: [source.check() for source in streams.values()])
    parts = final.with_suffix(".partial")
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(locked(folder)))
        if on_first(final.exists):  # another process may have made it while this one waited
            return final
        try:
            chunks = {}
            for name in reversed(streams):  # validation first: it is small, and as likely to be wrong
                work = partial(_tokenize_stream, config, name, streams[name], parts, tokenizer, communicator)
                made = communicator.agree(work)
                if (bad := streams[name].bad).count:
                    text = "%d of %d %s documents are no text and are passed over"
                    _logger.warning(text, bad.count, bad.read, name)
                chunks[name] = [parts / f"{chunk}.npz" for chunk in sorted(itertools.chain(*communicator.gather(made)))]
            on_first(lambda: _join(parts, final, chunks, fraction, tokenizer, made_from))
        except DataError:
            if communicator.rank == 0:
                shutil.rmtree(parts / _WHOLE, ignore_errors=True)
                if not any(parts.glob("*.npz")):  # nothing to go on from
                    shutil.rmtree(parts, ignore_errors=True)
            raise
    return final


def _tokenize_stream(
    config: Config, name: str, source: Source, folder: Path, tokenizer: Tokenizer, communicator: Communicator
) -> list[str]:
    """Make this rank's chunks of a stream; returns their names."""
    with writing(folder, DataError):
        folder.mkdir(parents=True, exist_ok=True)
    total = sum(source.sizes)
    processes = config.data.num_workers if not total or total > chunk_size(source) else 0  # one chunk needs no helpers
    chunks = cut_into_chunks(source, name, config.data.max_documents if name == "train" else 0, communicator)
    names, documents, characters = [], 0, 0
    title = f"preparing {name} texts" + (f" (rank {communicator.rank})" if communicator.size > 1 else "")
    patience = Patience(config.run.stall_timeout, config.run.phase_timeout)
    made = tokenize(chunks, folder, tokenizer, processes, patience, source.is_chat)
    with ProgressBar(total, title=title, counts=False) as progress, closing(made):  # whatever ends it, no process stays
        for chunk in made:
            names.append(chunk.name)
            documents += len(chunk.texts)
            characters += sum(map(len, chunk.texts))
            progress.update(chunk.position, f"{documents:,} documents, {characters / 1e6:,.1f} M characters")
    return names


def choose_validation(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are held out: the round(fraction * documents) with the smallest hashes, at least one.

    A choice by content: it does not change with the order of files, and copies of one text fall on the same side (but
    for those at the very border). True for each that is; DataError if there are fewer than two. [documents]
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


def _join(
    parts: Path,
    final: Path,
    chunks: dict[str, list[Path]],
    fraction: float | None,
    tokenizer: Tokenizer,
    made_from: dict[str, Any],
) -> None:
    """Join the chunks of each stream into the prepared files and give their folder its name."""
    whole, vocab_size = parts / _WHOLE, tokenizer.vocab_size
    streams = {name: partial(_documents, paths) for name, paths in chunks.items()}
    if fraction is not None:
        paths = chunks["train"]
        held_out = choose_validation(np.concatenate([read_chunk(path).hashes for path in paths] or [[]]), fraction)
        parts_of = {"train": ~held_out, "validation": held_out}
        streams = {name: partial(_documents, paths, kept) for name, kept in parts_of.items()}
    with writing(final, DataError):
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        files: dict[str, FileEntry] = {}
        for name, documents in streams.items():
            files |= write_indexed(whole / name, vocab_size, ((each.tokens, each.lengths) for each in documents()))
            if (first := next(documents(), None)) and first.masks is not None:
                files |= write_mask(whole / f"{name}{MASK}", (each.masks for each in documents()))
        written = {name: IndexedTokens(whole / name) for name in streams}
        record = Record(
            format=_FORMAT,
            vocab_size=vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            documents={name: indexed.num_documents for name, indexed in written.items()},
            tokens={name: indexed.num_tokens for name, indexed in written.items()},
            files=files,
        )
        write_whole(whole / _TOKENIZER, tokenizer.data, DataError)
        write_whole(whole / ORIGIN, json.dumps(made_from), DataError)
        write_whole(whole / RECORD, record.model_dump_json(indent=1), DataError)
        os.rename(whole, final)
        sync_folder(final.parent)
        shutil.rmtree(parts, ignore_errors=True)


def _documents(paths: list[Path], kept: np.ndarray | None = None) -> Iterator[TokenizedChunk]:
    """The documents of chunks, all or those that are kept [documents], a chunk at a time."""
    first = 0
    for chunk in map(read_chunk, paths):
        count = len(chunk.lengths)
        yield chunk if kept is None else chunk.some(kept[first : first + count])
        first += count


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that prepares in a folder; a second one waits."""
    with ExitStack() as stack:
        with writing(folder, DataError):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / ".lock", "wb"))
        if not lock(file):
            _logger.info("%s: another process is preparing data here; waiting for it", folder)
            lock(file, waits=True)
        yield


def open_data(config: Config, is_writer: bool = True, exchange: Exchange = lambda work: work()) -> OpenData:
    """Open a config's data, which one rank prepares first where they are missing; the writer reports. DataError if they
    cannot be read, written or used, or prepared files are damaged."""
    folder = exchange(lambda: str(prepare_data(config).resolve()))
    record, tokenizer, (train, validation) = _open_folder(config, Path(folder), "train", "validation")
    if is_writer:
        for name, samples in (("training", train), ("validation", validation)):
            counts = len(samples), samples.indexed.num_documents, samples.indexed.num_tokens
            _logger.info("%s: %s samples of %s documents, %s tokens", name, *(f"{count:,}" for count in counts))
        if rules := tokenizer.only_sentencepiece:
            text = "%s: exports will need sentencepiece to read it, and --trail will be refused: %s"
            _logger.warning(text, tokenizer.name, "; ".join(rules))
    return OpenData(train, validation, record.digest, {"tokenizer_sha256": tokenizer.sha256}, tokenizer=tokenizer)


def open_texts(config: Config, path: str, exchange: Exchange = lambda work: work()) -> OpenData:
    """As ``open_data`` other texts, a file, folder or pattern, read as ``data.source`` says or else by their suffix."""

    def prepare() -> str:
        key, own = row_key(config.data), find(config)
        texts = open_files("data", path, config.data.source, key)
        texts.bad = BadDocuments(config.data.max_bad_share)
        tokenizer = find_tokenizer(config) if own is None else load_tokenizer(own / _TOKENIZER, config.model.vocab_size)
        says = [type(texts).__name__, key, texts.seen, *["messages"] * texts.is_chat]  # a changed file is other data
        return str(prepare_streams(config, says, {"validation": texts}, tokenizer).resolve())

    _, tokenizer, (samples,) = _open_folder(config, Path(exchange(prepare)), "validation")
    return OpenData(None, samples, None, {}, tokenizer=tokenizer)


def continued(config: Config, data_digest: str, identity: dict[str, Any], run: Path, resuming: bool) -> Config:
    """A run's config with the texts, and else with the tokenizer, that it was trained with so far; both are found where
    the corpus, or the run's folder, has been moved, and the corpus need not be there.

    ``data_digest`` and ``identity`` are those of the run's :class:`OpenData`, as far as its checkpoint, in the folder
    ``run``, has them. DataError if it is ``resuming`` on other data without ``run.allow_schedule_change``.
    """
    if find(config):
        return config
    own, others = prepared_folder(config), []
    for path in sorted({*own.glob(f"*/{RECORD}"), *(run / "data").glob(f"*/{RECORD}")}):
        with suppress(OSError, ValueError):  # not whole
            record = Record.model_validate_json(path.read_bytes())
            if record.digest == data_digest:
                if path.parent.parent == own and looks_alike(config, path.parent, record.tokenizer_sha256):
                    return replace(config, data=replace(config.data, prepared=str(path.parent)))
                others.append(path.parent)
    if not resuming or not others or looks_alike(config, others[0], identity.get("tokenizer_sha256", "")):
        return config
    if not config.run.allow_schedule_change:
        if not (others[0] / ORIGIN).is_file():  # by an older version: what is prepared now is compared afterwards
            return config
        raise DataError(
            f"[data] names other texts than the run was trained on so far ({others[0]}); "
            "run.allow_schedule_change=true goes on with them, from their first sample"
        )
    if config.data.tokenizer != "auto":
        return config
    tokenizer = run_tokenizer(config, data_digest, identity, [own, run / "data"])
    return replace(config, data=replace(config.data, tokenizer=tokenizer.name))


def run_tokenizer(
    config: Config, data_digest: str, identity: dict[str, Any], folders: Sequence[Path], given: Path | None = None
) -> Tokenizer:
    """The tokenizer that a run was trained with, told from any other by its hash; its corpus need not be there.

    It is looked for in ``folders`` of prepared texts and at ``data.tokenizer``, or the file ``given`` is taken;
    DataError if it is not there, or is another one. ``data_digest`` and ``identity`` are those of the run's
    :class:`OpenData`, as far as its checkpoint has them.
    """
    vocab_size, where = config.model.vocab_size, ", ".join(map(str, folders))
    prepared = [
        path.parent for folder in folders for path in (*folder.glob(RECORD), *sorted(folder.glob(f"*/{RECORD}")))
    ]
    sha256 = identity.get("tokenizer_sha256")
    for folder in [] if sha256 else prepared:  # older checkpoints have none
        with suppress(OSError, ValueError):  # not whole
            check_plain(folder / RECORD)
            record = Record.model_validate_json((folder / RECORD).read_bytes())
            sha256 = record.tokenizer_sha256 if record.digest == data_digest else sha256
    if sha256 is None:
        raise DataError(
            f"the run's prepared texts are in none of {where}, and without them its tokenizer cannot be told from "
            "another; give their folder with --prepared"
        )
    if given is not None:
        tokenizer = load_tokenizer(given, vocab_size, "--tokenizer")
        if tokenizer.sha256 != sha256:
            raise DataError(f"--tokenizer {given}: SHA-256 {tokenizer.sha256} is not that of the run's own, {sha256}")
        return tokenizer
    trained = [path for folder in folders for path in sorted(folder.glob("tokenizer-*.model"))]
    places = [*(folder / _TOKENIZER for folder in prepared), *trained, Path(os.path.expanduser(config.data.tokenizer))]
    for place in places:
        if place.is_file() and hashlib.sha256(read_tokenizer(place)).hexdigest() == sha256:
            return load_tokenizer(place, vocab_size)
    raise DataError(
        f"the run's tokenizer (SHA-256 {sha256}) is neither in {where} nor at data.tokenizer = "
        f"{config.data.tokenizer!r}; give it with --tokenizer FILE"
    )


def _open_folder(config: Config, folder: Path, *names: str) -> tuple[Record, Tokenizer, list[TextSamples]]:
    """The record of a prepared folder, its tokenizer and samples, checked."""
    path = folder / RECORD
    try:
        check_plain(path)
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; is it on a disk that every rank sees? (data.prepared)"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is damaged; {_REMEDY}") from error
    if record.format != _FORMAT:
        raise DataError(f"{path}: has format {record.format}, this version reads {_FORMAT}; {_REMEDY}")
    for name, entry in record.files.items():
        with reading(folder / name, DataError):  # a name may be too long to be asked for
            actual = (folder / name).stat().st_size if (folder / name).is_file() else None
        if actual != entry.size:
            found = "is missing" if actual is None else f"has {actual} bytes"
            raise DataError(f"{folder / name}: {found}, must have {entry.size} by {RECORD}; {_REMEDY}")
    for name in [name for name in record.files if not name.endswith(BLOCKS)]:
        try:
            check_blocks(folder / name, record.files, config.data.check == "all")
        except DataError as error:
            raise DataError(f"{error}; {_REMEDY}") from error
    tokenizer = load_tokenizer(folder / _TOKENIZER, config.model.vocab_size)
    if tokenizer.sha256 != record.tokenizer_sha256:
        raise DataError(f"{folder / _TOKENIZER}: is not the one the texts were prepared with; {_REMEDY}")
    for name in names:
        if f"{name}.bin" not in record.files:
            raise DataError(f"{path}: lists no {name}.bin; {_REMEDY}")
    shape = config.data.layout, config.model.max_seq_len, config.model.vocab_size
    return record, tokenizer, [TextSamples(IndexedTokens(folder / name), *shape) for name in names]
