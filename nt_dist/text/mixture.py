"""Several sources as one corpus: each prepared as if it were alone, with one tokenizer, and mixed by weight.

The digest of a mixture is those of its sources with their shares, "code 0.3 1f2a…, prose 0.7 90bc…": a run that goes on
finds each source again, wherever it has been moved to.
"""

import hashlib
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nt_dist.config import Config
from nt_dist.config.keys import NO_TABLES, Tables
from nt_dist.data.mixture import Mixture
from nt_dist.data.samples import Exchange, OpenData
from nt_dist.errors import DataError
from nt_dist.files import write_whole
from nt_dist.text import prepare
from nt_dist.text.communicator import Communicator
from nt_dist.text.origin import find, mixture_tokenizer, prepared_folder, with_tokenizer
from nt_dist.text.settings import shares
from nt_dist.text.sources import open_source
from nt_dist.text.tokenizer import read_tokenizer, train_on_mixture

_ALONE = Communicator()
_logger = logging.getLogger(__name__)


def prepare_data(config: Config, communicator: Communicator = _ALONE) -> dict[str, Path]:
    """As :func:`nt_dist.text.prepare.prepare_data` each source; returns their folders by name, "" of
    one alone."""
    if not config.data.sources:
        return {"": prepare.prepare_data(config, communicator)}
    communicator.on_first(lambda: _train_tokenizer(config))
    return {name: prepare.prepare_data(one, communicator) for name, one in with_tokenizer(config).items()}


def _train_tokenizer(config: Config) -> None:
    """Train the tokenizer of a mixture, if it is to be trained, is not there, and something has to be prepared."""
    sources, path = with_tokenizer(config), mixture_tokenizer(config)
    if config.data.tokenizer != "auto" or path.exists() or all(map(find, sources.values())):
        return
    opened = {name: open_source(one.data) for name, one in sources.items()}
    for source in opened.values():
        source.check()
    with prepare.locked(path.parent):
        if not path.exists():  # another process may have made it while this one waited
            _logger.info("training a tokenizer of %d pieces on %s", config.model.vocab_size, ", ".join(opened))
            share = shares(config)
            texts = [(source, share[name], sources[name].data.max_documents) for name, source in opened.items()]
            write_whole(path, train_on_mixture(texts, config.model.vocab_size), DataError)


def open_data(config: Config, is_writer: bool = True, exchange: Exchange = lambda work: work()) -> OpenData:
    """As :func:`nt_dist.text.prepare.open_data`, a mixture too. DataError if its sources have several tokenizers."""
    if not config.data.sources:
        return prepare.open_data(config, is_writer, exchange)
    folders = exchange(lambda: {name: str(folder.resolve()) for name, folder in prepare_data(config).items()})
    opened = {}
    for name, one in with_tokenizer(config).items():
        if is_writer:
            _logger.info("source %s, %.4g of the samples:", name, shares(config)[name])
        opened[name] = prepare.open_data(one, is_writer, lambda _, name=name: folders[name])
    first, *others = opened
    tokenizer = opened[first].tokenizer
    for name in others:
        if opened[name].tokenizer.sha256 != tokenizer.sha256:
            raise DataError(f"data.sources.{name} was prepared with another tokenizer than data.sources.{first}")
    train, validation = (
        Mixture({name: getattr(data, part) for name, data in opened.items()}, shares(config))
        for part in ("train", "validation")
    )
    digest = ", ".join(f"{name} {shares(config)[name]:.9g} {data.digest}" for name, data in opened.items())
    return OpenData(train, validation, digest, opened[first].identity, tokenizer=tokenizer)


def open_texts(config: Config, path: str, exchange: Exchange = lambda work: work()) -> OpenData:
    """As :func:`nt_dist.text.prepare.open_texts`, with the tokenizer of a mixture."""
    if not config.data.sources:
        return prepare.open_texts(config, path, exchange)
    one = next(iter(with_tokenizer(config).values())).data
    alone = replace(config.data, sources=NO_TABLES, tokenizer=one.tokenizer, prepared=str(prepared_folder(config)))
    return prepare.open_texts(replace(config, data=alone), path, exchange)


def continued(config: Config, data_digest: str, identity: dict[str, Any], run: Path, resuming: bool) -> Config:
    """As :func:`nt_dist.text.prepare.continued`, of a mixture each source; the tokenizer is the run's also where the
    shares, or the sources, are others now."""
    words = [each.split() for each in data_digest.split(", ")]
    known = {each[0]: each[2] for each in words if len(each) == 3}  # none of a single source's
    sources = config.data.sources
    if not sources and not known:
        return prepare.continued(config, data_digest, identity, run, resuming)
    is_trained = config.data.tokenizer == "auto"
    file = mixture_tokenizer(config) if is_trained else Path(config.data.tokenizer).expanduser()
    if not file.is_file() or (is_trained and not (sources and _is(file, identity))):
        with suppress(DataError):  # which is said where it is needed
            folders = [prepared_folder(config), run / "data"]
            tokenizer = prepare.run_tokenizer(config, data_digest, identity, folders)
            config = replace(config, data=replace(config.data, tokenizer=tokenizer.name))
    tables = sources.to_dict()
    for name, one in with_tokenizer(config).items():
        found = prepare.continued(one, known.get(name, ""), identity, run, resuming)
        if found.data.prepared != one.data.prepared:
            tables[name]["prepared"] = found.data.prepared
    return replace(config, data=replace(config.data, sources=Tables.of(tables)))


def _is(tokenizer: Path, identity: dict[str, Any]) -> bool:
    """Whether a tokenizer's file is that of a run."""
    sha256 = identity.get("tokenizer_sha256")
    return hashlib.sha256(read_tokenizer(tokenizer)).hexdigest() == sha256
