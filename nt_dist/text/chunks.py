"""Chunks: a few million characters of documents, tokenized by one process, in one file that is whole or not there.

Which documents a chunk holds depends on the source alone, and its file keeps a hash of each of its texts: a file that
an earlier, interrupted run left is used again exactly when it holds what it should.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import operator
import os
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nt_dist.errors import DataError
from nt_dist.files import replacing
from nt_dist.text.communicator import Communicator
from nt_dist.text.indexed import token_type
from nt_dist.text.sources import Source
from nt_dist.text.tokenizer import Tokenizer

_SMALLEST, _LARGEST = 1 << 20, 1 << 24
_CHUNKS_WANTED = 256
_WAITING_PER_PROCESS = 2
LOOK_SECONDS = 0.5  # between two looks whether a chunk is done


class Chunk(NamedTuple):
    """The texts of a chunk; its position is the bytes of the source read when it was complete, for progress."""

    name: str
    texts: list[str]
    position: int


class TokenizedChunk(NamedTuple):
    """What the file of a chunk holds: documents one after the other, and how many tokens each has."""

    tokens: np.ndarray
    lengths: np.ndarray  # int64 [documents]
    hashes: np.ndarray  # of each text, uint64 [documents]
    masks: np.ndarray | None = None  # of conversations: which tokens count in the loss, bool, as many as tokens

    def some(self, kept: np.ndarray) -> "TokenizedChunk":
        """Those documents that are kept, which are True. [documents]"""
        tokens = np.repeat(kept, self.lengths)
        masks = None if self.masks is None else self.masks[tokens]
        return TokenizedChunk(self.tokens[tokens], self.lengths[kept], self.hashes[kept], masks)


def chunk_size(source: Source) -> int:
    """Characters of a chunk: a function of the source alone, so that a resume cuts it alike."""
    total = sum(source.sizes)
    return min(max(total // _CHUNKS_WANTED, _SMALLEST), _LARGEST) if total else _LARGEST


def cut_into_chunks(source: Source, stream: str, max_documents: int, communicator: Communicator) -> Iterator[Chunk]:
    """Read a source, or its first ``max_documents`` (0: all), and cut it into the chunks that are this rank's.

    Their names begin with ``stream`` and sort in the order of the documents. Neighbouring units are read in groups of
    about a chunk's size (units of unknown size each alone). With enough groups each rank reads its own only; otherwise
    all read everything, and keep their share.
    """
    size, rank, ranks = chunk_size(source), communicator.rank, communicator.size
    begins = [0, *itertools.accumulate(source.sizes)]  # bytes
    by_size = itertools.groupby(range(len(begins) - 1), lambda unit: begins[unit] // size if begins[-1] else unit)
    groups = [list(units) for _, units in by_size]
    own_groups_only = ranks > 1 and not max_documents and len(groups) >= 2 * ranks
    read = (
        (place, document.text, begins[unit] + document.read)
        for place in (range(rank, len(groups), ranks) if own_groups_only else range(len(groups)))
        for unit in groups[place]
        for document in source.documents(unit)
    )
    for place, documents in itertools.groupby(itertools.islice(read, max_documents or None), operator.itemgetter(0)):
        for number, (texts, position) in enumerate(_cut(documents, size)):
            if own_groups_only or (place + number) % ranks == rank:
                yield Chunk(f"{stream}-{place:06}-{number:06}", texts, position)


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


def hash_texts(texts: list[str]) -> np.ndarray:
    """64 bits for each text, the same on every machine. [texts]"""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


def read_chunk(path: Path) -> TokenizedChunk:
    """Read the file of a chunk; DataError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a zip file: each array has its checksum
            chunk = TokenizedChunk(**arrays)
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read, or is damaged: {error}") from error
    masked = len(chunk.tokens) if chunk.masks is None else len(chunk.masks)
    if not chunk.lengths.sum() == len(chunk.tokens) == masked or len(chunk.lengths) != len(chunk.hashes):
        raise DataError(f"{path}: is damaged: its lengths do not add up")
    return chunk


def _is_done(path: Path, texts: list[str]) -> bool:
    with contextlib.suppress(DataError):
        return path.exists() and np.array_equal(read_chunk(path).hashes, hash_texts(texts))
    return False


def write_chunk(path: Path, texts: list[str], tokenizer: Tokenizer, is_chat: bool = False) -> None:
    """Tokenize texts, or conversations, into the file of a chunk, which appears under its name when whole; DataError if
    it cannot."""
    kind, masks = token_type(tokenizer.vocab_size), {}
    if is_chat:
        pairs = [tokenizer.conversation(json.loads(text)) for text in texts]
        documents = [np.array(tokens, dtype=kind) for tokens, _ in pairs]
        masks["masks"] = np.concatenate([np.array(mask, dtype=bool) for _, mask in pairs])
    else:
        documents = [np.array(tokenizer.document(text), dtype=kind) for text in texts]
    lengths = np.array([len(tokens) for tokens in documents], dtype=np.int64)
    # A folder that is gone was removed by whoever joined the chunks or gave up: it must not come back.
    with replacing(path, DataError, make_folder=False) as file:
        np.savez(file, tokens=np.concatenate(documents), lengths=lengths, hashes=hash_texts(texts), **masks)


class Patience:
    """How long a chunk may take: the first one ``phase_timeout`` seconds, later ones ``stall_timeout``, or five times
    the longest so far where that is more; with ``stall_timeout`` 0 as long as it takes."""

    def __init__(self, stall_timeout: float = 0.0, phase_timeout: float = 0.0):
        self._limit = phase_timeout if stall_timeout else math.inf
        self._least, self._longest = stall_timeout, 0.0

    def wait(self, chunk: Chunk, done: Future[None]) -> None:
        """Wait for a chunk to be done; DataError if it takes too long."""
        waited = 0.0  # counted, so that the time for which this process is stopped as well is not part of it
        while not done.done():
            concurrent.futures.wait([done], LOOK_SECONDS)
            waited += LOOK_SECONDS
            if waited > self._limit:
                raise DataError(
                    f"the processes that tokenize have stood still for {waited:.0f} s at part {chunk.name}; what is "
                    "done is kept: start again"
                )
        done.result()
        if self._least:
            self._longest = max(self._longest, waited)
            self._limit = max(self._least, 5 * self._longest)


def tokenize(
    chunks: Iterator[Chunk],
    folder: Path,
    tokenizer: Tokenizer,
    processes: int,
    patience: Patience | None = None,
    is_chat: bool = False,
) -> Iterator[Chunk]:
    """Make the files of chunks, but for those that ``folder`` has already, and give each chunk that is done.

    Chunks are read a few ahead. Processes start with the first chunk to make; 0 works in this one. They are spawned,
    not forked, because this one may hold the threads of torch and of MPI. DataError if one of them dies, or if they
    stand still. Whatever ends this early, a signal say, ends them at once.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, _start_worker) if processes else None
    waiting: deque[tuple[Chunk, Future[None]]] = deque()
    patience, is_whole = patience or Patience(), False
    try:
        for chunk in chunks:
            path = folder / f"{chunk.name}.npz"
            if _is_done(path, chunk.texts):
                yield chunk
            elif pool is None:
                write_chunk(path, chunk.texts, tokenizer, is_chat)
                yield chunk
            else:
                waiting.append((chunk, pool.submit(write_chunk, path, chunk.texts, tokenizer, is_chat)))
            if len(waiting) > _WAITING_PER_PROCESS * processes:
                chunk, done = waiting.popleft()
                patience.wait(chunk, done)
                yield chunk
        for chunk, done in waiting:
            patience.wait(chunk, done)
            yield chunk
        is_whole = True
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that tokenizes died at part {chunk.name} (out of memory?); what is done is kept: start again, "
            "perhaps with a smaller data.num_workers"
        ) from error
    finally:
        if pool is not None:
            for process in [] if is_whole else list((pool._processes or {}).values()):
                process.kill()  # one that is stopped would be waited for without end
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    def leave_with_parent() -> None:  # a killed one does not close the queue that workers wait on
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=leave_with_parent, daemon=True).start()
