"""Where texts come from: ``data.source``, one class each, all read as documents in a fixed order.

A source is a list of units (files; for a streamed data set, its shards), each read from its start. Nothing here is
random and nothing is kept between documents, so that preparing can stop and go on anywhere.
"""

import codecs
import contextlib
import itertools
import logging
import os
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nt_dist.errors import DataError
from nt_dist.files import expand, files_under, plain_suffix, reading
from nt_dist.text.files import read_lines, read_text
from nt_dist.text.rows import columns_of, fields_of, parse, read_field, setting_of
from nt_dist.text.settings import Data, Messages, row_key

# A lone text file, read as one document, would leave nothing to validate on. No document is longer than the second:
# a tokenizer takes many times a text's size.
_DOCUMENT_OF_LONE_FILE = 1 << 16
_LONGEST_DOCUMENT = 1 << 24
_FEW = 10  # documents that are no text, which may stand together at a beginning
_NO_TEXT_IN_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


_logger = logging.getLogger(__name__)


class Document(NamedTuple):
    """A text, and how many bytes of the unit have been read, for progress."""

    text: str
    read: int


class BadDocuments:
    """The documents of a source that are no text: how many of how many, up to a share of all."""

    def __init__(self, share: float = 0.0):
        self.share, self.read, self.count = share, 0, 0
        self._units: dict[int, tuple[Any, ...]] = {}
        self._part = 0.0  # of the source, that was read to an end
        self._first: DataError | None = None

    def add(self, unit: int, read: int, count: int, error: DataError | None = None, share: float = 0.0) -> None:
        """Take note that so many of the documents of a unit were read so far, and are no text, the last one for an
        error; or without one that this is all of the unit, which is this share of the source.

        DataError, that of the first, if they are too many: clearly, or at the end of a unit.
        """
        before = self._units.get(unit, (0, 0, 0.0))  # units may be read more than once
        self._units[unit] = now = tuple(map(max, before, (read, count, share)))
        self.read, self.count = self.read + now[0] - before[0], self.count + now[1] - before[1]
        self._part += now[2] - before[2]
        if error and not self._first:
            self._first = error
            _logger.warning("%s; passed over, if no more than data.max_bad_share = %s are", error, self.share)
        expected = self.read if error else self.read / self._part
        allowed = self.share * expected + 1e-6  # which is rounded
        if self._first and self.count > allowed and (error is None or self.count > _FEW):
            rule = f"{self.count} of {self.read} documents are no text; data.max_bad_share = {self.share} may be"
            raise DataError(f"{self._first}; {rule}") from self._first


class Source:
    """A corpus."""

    most_sampled = 4096  # units that are opened, at most, where a sample of the texts will do
    sizes: list[int]  # bytes of each unit, in order; 0 where that is not known
    text_key: str = ""  # what is read of a row
    seen: dict[str, list[int]]  # size and time of each file by its absolute path, in order; empty for what is remote

    @cached_property
    def bad(self) -> BadDocuments:
        return BadDocuments()

    @property
    def is_chat(self) -> bool:
        """Whether its documents are conversations."""
        return isinstance(self.text_key, Messages)

    @cached_property
    def _total(self) -> int:
        return sum(self.sizes)

    def documents(self, unit: int) -> Iterator[Document]:
        """The texts of one unit, none of them blank. DataError if it is binary, cut short or not in its format, if too
        many documents are no text, or if it is empty and there is no other."""
        is_empty, read, count = True, 0, 0
        for read, document in enumerate(self._texts(unit), start=1):
            if isinstance(document, DataError):
                count += 1
                self.bad.add(unit, read, count, document)
            elif document.text.strip():
                yield document
                is_empty = False
        size, total = (self.sizes[unit], self._total) if self._total else (1, len(self.sizes))
        self.bad.add(unit, read, count, None, max(size, 1) / total)
        if is_empty and not count:
            self._say_empty(unit)

    def _texts(self, unit: int) -> Iterator[Document | DataError]:
        """Its texts, blank ones too; in place of what is no text, why not."""
        raise NotImplementedError

    def _say_empty(self, unit: int) -> None:
        """Say that a unit has no text."""

    def check(self) -> None:
        """Look at the beginning of each unit, so that most bad input is refused before any work is done."""
        for unit in range(len(self.sizes)):
            next(self.documents(unit), None)


class FileSource(Source):
    """Files on disk, in order; ``text_key`` is the field or column that holds the text, where the format has such."""

    def __init__(self, files: list[Path], text_key: str):
        self.files, self.text_key = files, text_key
        self._empty: set[int] = set()

    @cached_property
    def sizes(self) -> list[int]:
        return [_size_and_time(file)[0] for file in self.files]

    @cached_property
    def seen(self) -> dict[str, list[int]]:
        return _seen(self.files)

    def _texts(self, unit: int) -> Iterator[Document | DataError]:
        yield from self._texts_of(self.files[unit])

    def _texts_of(self, file: Path) -> Iterator[Document | DataError]:
        raise NotImplementedError

    def _say_empty(self, unit: int) -> None:
        if len(self.files) == 1:
            raise DataError(f"{self.files[unit]}: is empty: it holds no text")
        if unit not in self._empty:
            _logger.warning("%s: is empty: it holds no text; passed over", self.files[unit])
        self._empty.add(unit)


def _seen(files: list[Path]) -> dict[str, list[int]]:
    return {os.path.abspath(file): list(_size_and_time(file)) for file in files}


def _size_and_time(file: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change."""
    with reading(file, DataError):
        stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


class TextSource(FileSource):
    """Plain text, UTF-8. A file is a document; a lone file is cut into several at line ends."""

    is_chat = False

    def check(self) -> None:
        for unit, file in enumerate(self.files):
            with contextlib.suppress(DataError):  # which documents() counts
                if any(text.strip() for text, _ in read_text(file)):
                    continue
            next(self.documents(unit), None)  # which says what is wrong

    def _texts_of(self, file: Path) -> Iterator[Document | DataError]:
        try:
            yield from self._parts(file)
        except DataError as error:
            yield error

    def _parts(self, file: Path) -> Iterator[Document]:
        text, read = "", 0
        longest = _DOCUMENT_OF_LONE_FILE if len(self.files) == 1 else _LONGEST_DOCUMENT
        for block, read in read_text(file):
            text += block
            while len(text) > longest:
                cut = text.rfind("\n", 0, longest) + 1 or longest
                yield Document(text[:cut], read)
                text = text[cut:]
        yield Document(text, read)


class StdlibSource(TextSource):
    """The Python source of the running interpreter's standard library, without its tests. A file is a document."""

    def __init__(self) -> None:
        root, files = sysconfig.get_paths()["stdlib"], []
        for folder, inside, names in os.walk(root):
            inside[:] = set(inside) - _NO_TEXT_IN_FOLDERS  # not entered: installed packages are many
            files += [Path(folder, name) for name in names if name.endswith(".py")]
        if not files:
            raise DataError(f"data.source = 'stdlib': {root} holds no .py file; use data.source = 'text'")
        super().__init__(sorted(files), "")

    def check(self) -> None:
        """Nothing: files that are no text are passed over."""

    def documents(self, unit: int) -> Iterator[Document]:
        texts = self._texts(unit)  # empty __init__ files too; a few test data in other encodings
        yield from (each for each in texts if isinstance(each, Document) and each.text.strip())


class JsonLinesSource(FileSource):
    """One JSON object a line, its text under ``data.text_key``; blank lines and blank texts are passed over."""

    def _texts_of(self, file: Path) -> Iterator[Document | DataError]:
        for number, (line, read) in enumerate(read_lines(file), start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                where = f"{file}, line {number}"
                try:
                    yield Document(read_field(parse(line, where), self.text_key, where), read)
                except DataError as error:
                    yield error


class ParquetSource(FileSource):
    """Parquet files, the text in the column ``data.text_key``; empty cells are passed over."""

    def _texts_of(self, file: Path) -> Iterator[Document | DataError]:
        import pyarrow
        import pyarrow.parquet

        (size, _), key, done = _size_and_time(file), self.text_key, 0
        what = "conversations" if self.is_chat else "text"
        try:
            # No threads of pyarrow's: they outlive the reading and can abort an interpreter on its way out.
            with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as table:
                columns = table.schema_arrow.names
                for name in fields_of(key):
                    which = f"{name!r} of {setting_of(key)}" if name != key else setting_of(key)
                    if name not in columns:
                        only = ", ".join(map(repr, columns))
                        raise DataError(f"{file}: has no column {which}, only {only}")
                    if (count := columns.count(name)) > 1:
                        raise DataError(f"{file}: has {count} columns {which}")
                    kind = table.schema_arrow.field(name).type
                    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
                    if not any(is_kind(kind) for is_kind in columns_of(pyarrow.types, key)):
                        raise DataError(f"{file}: the column {which} must be {what}, not {kind}")
                for batch in table.iter_batches(1024, columns=fields_of(key), use_threads=False):
                    done += len(batch)
                    first = done - len(batch)
                    for row, record in enumerate(batch.to_pylist(), start=first):
                        if not self.is_chat and key in record:
                            record[key] = record[key] or ""
                        try:
                            text = read_field(record, key, f"{file}, row {row}")
                            yield Document(text, size * done // table.metadata.num_rows)
                        except DataError as error:
                            yield error
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: is no Parquet file, or is damaged: {error}") from error


class HubSource(Source):
    """A data set of the Hugging Face hub, or of a folder in its layout, streamed with ``datasets.load_dataset``."""

    most_sampled = 16  # each is a download

    def __init__(self, path: str, subset: str, split: str, text_key: str):
        self.path, self.subset, self.split, self.text_key = path, subset, split, text_key

    def __str__(self) -> str:
        return f"data.path = {self.path!r}, subset {self.subset!r}, split {self.split!r}"

    @cached_property
    def seen(self) -> dict[str, list[int]]:
        """The files where the data set is a folder: what is prepared must open without a network."""
        folder = Path(self.path)
        return _seen(files_under(folder) if folder.is_dir() else [])

    @cached_property
    def _dataset(self) -> Any:
        try:
            import datasets

            return datasets.load_dataset(self.path, self.subset or None, split=self.split, streaming=True)
        except Exception as error:  # its own, fsspec's, the HTTP client's: it promises no common class
            raise DataError(f"{self}: datasets.load_dataset says: {_one_line(error)}") from error

    @cached_property
    def sizes(self) -> list[int]:
        return [0] * self._dataset.num_shards

    def _texts(self, unit: int) -> Iterator[Document | DataError]:
        rows = iter(self._dataset.shard(num_shards=len(self.sizes), index=unit))
        for number in itertools.count():
            where = f"{self}, shard {unit}, row {number}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # as above
                raise DataError(f"{where}: {_one_line(error)}") from error
            try:
                yield Document(read_field(row, self.text_key, where), 0)
            except DataError as error:
                yield error

    def check(self) -> None:
        """Look at the first row only: each shard may be a download."""
        next(self.documents(0), None)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


_FORMATS = {
    "text": (TextSource, ()),
    "jsonl": (JsonLinesSource, (".jsonl", ".json", ".ndjson")),
    "parquet": (ParquetSource, (".parquet",)),
}
"""Values of data.source that name files: who reads them, and what the names of those in a folder end with."""


def open_source(data: Data, split: str = "train") -> Source:
    """The source of the training texts, or for "validation" of ``data.validation``; DataError if a path is missing."""
    source = _open(data, split)
    source.bad = BadDocuments(data.max_bad_share)
    return source


def _open(data: Data, split: str) -> Source:
    is_train = split == "train"
    if data.source == "hf":
        return HubSource(data.path, data.subset, "train" if is_train else data.validation, row_key(data))
    if data.source == "stdlib" and is_train:
        return StdlibSource()
    key, path = ("data.path", data.path) if is_train else ("data.validation", data.validation)
    return open_files(key, path, data.source, row_key(data))


def open_files(key: str, path: str | tuple[str, ...], source: str | None, text_key: str) -> FileSource:
    """The files that the setting ``key`` names, in the format ``source``, or that of the first one's suffix if none."""
    reader, suffixes = _FORMATS.get(source, (None, ()))
    files = expand(key, path, suffixes)
    if reader is None:
        source = _format_of(files[0])
        reader, _ = _FORMATS[source]
    for file in files:  # a list, a pattern and a folder of texts may name any
        if (other := _format_of(file)) not in (source, "text") and plain_suffix(file) != ".json":
            raise DataError(f"{key}: {file} is of data.source = {other!r}, not {source!r}; leave it out")
    return reader(files, text_key)


def _format_of(file: Path) -> str:
    """The value of data.source by a file's suffix."""
    return next((name for name, (_, suffixes) in _FORMATS.items() if plain_suffix(file) in suffixes), "text")
