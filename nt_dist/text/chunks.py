"""Parts: a few million characters of documents, tokenized by one process, in one file that is whole or not there.

Which documents a part holds depends on the source alone, and a part keeps a hash of each of its texts: a part that an
earlier, interrupted run left is used again exactly when it holds what it should.
"""

import hashlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nt_dist.errors import DataError
from nt_dist.text.indexed import token_type
from nt_dist.text.sources import Source
from nt_dist.text.tokenizer import Tokenizer
from nt_dist.text.workers import Crew

_SMALLEST, _LARGEST = 1 << 20, 1 << 24
_PARTS_WANTED = 256
_WAITING_PER_PROCESS = 2


class Chunk(NamedTuple):
    """The texts of one part, before they are tokenized."""

    name: str
    texts: list[str]
    position: int
    """Bytes of the source read when it was complete, for progress."""


class Part(NamedTuple):
    """The tokens of one part."""

    tokens: np.ndarray
    """All documents, one after the other."""
    lengths: np.ndarray
    """Tokens of each document, int64. [documents]"""
    hashes: np.ndarray
    """Of each document's text, uint64. [documents]"""


def part_size(source: Source) -> int:
    """Characters of a part: a function of the source alone, so that a resume cuts it alike."""
    total = sum(unit.size for unit in source.units)
    return min(max(total // _PARTS_WANTED, _SMALLEST), _LARGEST) if total else _LARGEST


def cut_into_chunks(source: Source, stream: str, max_documents: int, crew: Crew) -> Iterator[Chunk]:
    """Read a source and cut it into the chunks that are this rank's.

    Units are read in groups of about a part's size. With enough groups each rank reads its own only; otherwise all
    read everything, and keep their share.

    Args:
        source: The texts.
        stream: Head of the parts' names, which sort in the order of the documents.
        max_documents: Stop after so many; 0: all.
        crew: The ranks that share the work.
    """
    size = part_size(source)
    groups = _group(source, size)
    own_groups_only = crew.size > 1 and not max_documents and len(groups) >= 2 * crew.size
    places = range(crew.rank, len(groups), crew.size) if own_groups_only else range(len(groups))
    placed = ((place, *read) for place in places for read in _read_units(source, groups[place]))
    for place, documents in itertools.groupby(itertools.islice(placed, max_documents or None), lambda read: read[0]):
        for number, (texts, position) in enumerate(_cut(documents, size)):
            if own_groups_only or (place + number) % crew.size == crew.rank:
                yield Chunk(f"{stream}-{place:06}-{number:06}", texts, position)


def _read_units(source: Source, units: list[int]) -> Iterator[tuple[str, int]]:
    """The texts of some units, each with the bytes of the source up to its end."""
    for unit in units:
        begin = sum(before.size for before in source.units[:unit])
        for document in source.documents(unit):
            yield document.text, begin + document.read


def _cut(documents: Iterator[tuple[int, str, int]], size: int) -> Iterator[tuple[list[str], int]]:
    """Lists of documents of about ``size`` characters, each with the bytes of the source up to its end."""
    texts, characters, position = [], 0, 0
    for _, text, position in documents:
        texts.append(text)
        characters += len(text)
        if characters >= size:
            yield texts, position
            texts, characters = [], 0
    if texts:
        yield texts, position


def _group(source: Source, size: int) -> list[list[int]]:
    """Neighbouring units, together about ``size`` bytes; units of unknown size each alone."""
    groups: list[list[int]] = []
    filled = size
    for number, unit in enumerate(source.units):
        if filled >= size:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += unit.size or size
    return groups


def hash_texts(texts: list[str]) -> np.ndarray:
    """64 bits for each text, the same on every machine. [texts]"""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


def read_part(path: Path) -> Part:
    """Read a part.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a zip file: each array has its checksum
            part = Part(arrays["tokens"], arrays["lengths"], arrays["hashes"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read, or is damaged: {error}") from error
    if part.lengths.sum() != len(part.tokens) or len(part.lengths) != len(part.hashes):
        raise DataError(f"{path}: is damaged: its lengths do not add up")
    return part


def _is_done(path: Path, texts: list[str]) -> bool:
    try:
        return path.exists() and np.array_equal(read_part(path).hashes, hash_texts(texts))
    except DataError:
        return False


def write_part(path: Path, texts: list[str], tokenizer: Tokenizer) -> None:
    """Tokenize texts into a part, which appears under its name when it is whole.

    Raises:
        DataError: If it cannot be written.
    """
    kind = token_type(tokenizer.vocab_size)
    documents = [np.array(tokenizer.document(text), dtype=kind) for text in texts]
    lengths = np.array([len(tokens) for tokens in documents], dtype=np.int64)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, tokens=np.concatenate(documents), lengths=lengths, hashes=hash_texts(texts))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def tokenize(
    chunks: Iterator[Chunk], folder: Path, tokenizer: Tokenizer, processes: int, report: Callable[[Chunk], None]
) -> list[str]:
    """Make the parts of chunks.

    Args:
        chunks: What to tokenize; read as it is needed, a few chunks ahead.
        folder: Where the parts go; those that are there already are kept.
        tokenizer: Makes the tokens.
        processes: Worker processes; 0 works in this one.
        report: Called with each chunk that is done.

    Returns:
        The parts' names, in order.

    Raises:
        DataError: If a text cannot be read or a part not written, or a worker process dies.
    """
    names = []
    with _Workers(tokenizer, processes) as workers:
        for chunk in chunks:
            names.append(chunk.name)
            path = folder / f"{chunk.name}.npz"
            if _is_done(path, chunk.texts):
                report(chunk)
                continue
            workers.submit(path, chunk)
            for done in workers.collect(_WAITING_PER_PROCESS * processes):
                report(done)
        for done in workers.collect(0):
            report(done)
    return names


class _Workers:
    """Worker processes, started at the first task and gone at the end of the ``with``.

    They are spawned, not forked: this process may hold the threads of torch and of MPI.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int):
        self._tokenizer, self._processes = tokenizer, processes
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: deque[tuple[Chunk, Future[None] | None]] = deque()

    def __enter__(self) -> "_Workers":
        return self

    def submit(self, path: Path, chunk: Chunk) -> None:
        """Start a task, or do it at once without processes."""
        if not self._processes:
            write_part(path, chunk.texts, self._tokenizer)
            self._waiting.append((chunk, None))
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._tokenizer.data, self._tokenizer.name),
            )
        try:
            future = self._pool.submit(_work, path, chunk.texts)
        except BrokenProcessPool as error:
            raise _worker_died(chunk) from error
        self._waiting.append((chunk, future))

    def collect(self, at_most: int) -> Iterator[Chunk]:
        """Wait until at most so many tasks are unfinished; gives the finished ones."""
        while len(self._waiting) > at_most:
            chunk, future = self._waiting.popleft()
            try:
                if future is not None:
                    future.result()
            except BrokenProcessPool as error:
                raise _worker_died(chunk) from error
            yield chunk

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _worker_died(chunk: Chunk) -> DataError:
    return DataError(
        f"a process that tokenizes died at part {chunk.name} (out of memory?); what is done is kept: start again, "
        "perhaps with a smaller data.num_workers"
    )


_worker_tokenizer: Tokenizer | None = None  # of a worker process, which gets it once


def _start_worker(data: bytes, name: str) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker_tokenizer = Tokenizer(data, name)


def _leave_with_parent() -> None:
    """A killed parent does not close the queue that workers wait on: they would stay for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(path: Path, texts: list[str]) -> None:
    assert _worker_tokenizer is not None
    write_part(path, texts, _worker_tokenizer)
