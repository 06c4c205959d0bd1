"""What training and evaluation open: the prepared texts as samples, prepared first where they are not there."""

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nt_dist.config import Config
from nt_dist.data.samples import Exchange, OpenData
from nt_dist.errors import DataError
from nt_dist.text.indexed import IndexedTokens
from nt_dist.text.prepare import FORMAT, RECORD, TOKENIZER, Record, find_tokenizer, prepare_data, prepare_streams
from nt_dist.text.samples import TextSamples
from nt_dist.text.sources import open_files, open_source
from nt_dist.text.tokenizer import Tokenizer, load_tokenizer

_REMEDY = "remove its folder to prepare it again"
_logger = logging.getLogger(__name__)


def open_data(config: Config, is_writer: bool = True, exchange: Exchange = lambda work: work()) -> OpenData:
    """Open a config's data, which one rank prepares first where they are missing; the writer reports. DataError if they
    cannot be read, written or used, or prepared files are damaged."""
    folder = exchange(lambda: str(prepare_data(config).resolve()))
    record, tokenizer, (train, validation) = _open_folder(config, Path(folder), "train", "validation")
    if is_writer:
        for name, samples in (("training", train), ("validation", validation)):
            counts = len(samples), samples.indexed.num_documents, samples.indexed.num_tokens
            _logger.info("%s: %s samples of %s documents, %s tokens", name, *(f"{count:,}" for count in counts))
    return OpenData(train, validation, record.digest, {"tokenizer_sha256": tokenizer.sha256}, tokenizer=tokenizer)


def open_texts(config: Config, path: str, exchange: Exchange = lambda work: work()) -> OpenData:
    """As ``open_data`` other texts, a file, folder or pattern, read as ``data.source`` says or else by their suffix."""

    def prepare() -> str:
        data = config.data
        texts = open_files("data", path, data.source, data.text_key)
        tokenizer = find_tokenizer(config, open_source(data) if data.tokenizer == "auto" else texts)
        return str(prepare_streams(config, {"validation": texts}, tokenizer).resolve())

    _, tokenizer, (samples,) = _open_folder(config, Path(exchange(prepare)), "validation")
    return OpenData(None, samples, None, {}, tokenizer=tokenizer)


def run_tokenizer(
    config: Config, data_digest: str, identity: dict[str, Any], folders: Sequence[Path], given: Path | None = None
) -> Tokenizer:
    """The tokenizer that a run was trained with, told from any other by its hash; its corpus need not be there.

    It is looked for in ``folders`` of prepared texts and at ``data.tokenizer``, or the .model file ``given`` is taken;
    DataError if it is not there, or is another one. ``data_digest`` and ``identity`` are those of the run's
    :class:`OpenData`, as far as its checkpoint has them.
    """
    vocab_size, where = config.model.vocab_size, ", ".join(map(str, folders))
    prepared = [path.parent for folder in folders for path in sorted(folder.glob(f"*/{RECORD}"))]
    sha256 = identity.get("tokenizer_sha256")
    for folder in [] if sha256 else prepared:  # older checkpoints have none
        with contextlib.suppress(OSError, ValueError):  # not whole
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
    places = [*(folder / TOKENIZER for folder in prepared), *trained, Path(config.data.tokenizer).expanduser()]
    for place in places:
        if place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == sha256:
            return load_tokenizer(place, vocab_size)
    raise DataError(
        f"the run's tokenizer (SHA-256 {sha256}) is neither in {where} nor at data.tokenizer = "
        f"{config.data.tokenizer!r}; give it with --tokenizer FILE"
    )


def _open_folder(config: Config, folder: Path, *names: str) -> tuple[Record, Tokenizer, list[TextSamples]]:
    """The record of a prepared folder, its tokenizer and samples, checked."""
    path = folder / RECORD
    try:
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; is it on a disk that every rank sees? (data.prepared)"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: is damaged; {_REMEDY}") from error
    if record.format != FORMAT:
        raise DataError(f"{path}: has format {record.format}, this version reads {FORMAT}; {_REMEDY}")
    for name, entry in record.files.items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else None
        if actual != entry.size:
            found = "is missing" if actual is None else f"has {actual} bytes"
            raise DataError(f"{folder / name}: {found}, must have {entry.size} by {RECORD}; {_REMEDY}")
    tokenizer = load_tokenizer(folder / TOKENIZER, config.model.vocab_size)
    if tokenizer.sha256 != record.tokenizer_sha256:
        raise DataError(f"{folder / TOKENIZER}: is not the one the texts were prepared with; {_REMEDY}")
    for name in names:
        if f"{name}.bin" not in record.files:
            raise DataError(f"{path}: lists no {name}.bin; {_REMEDY}")
    shape = config.data.layout, config.model.max_seq_len, config.model.vocab_size
    return record, tokenizer, [TextSamples(IndexedTokens(folder / name), *shape) for name in names]
