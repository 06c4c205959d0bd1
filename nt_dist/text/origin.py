"""What prepared texts were made from: they are found again without it, and compared with it where it is there.

``origin.json`` in a prepared folder keeps what the config said, with absolute paths, and size and time of each file
that was read. Without numpy: a config is checked with this before anything slow is loaded.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nt_dist.config import Config
from nt_dist.errors import DataError
from nt_dist.text.settings import by_source, shares
from nt_dist.text.sources import FileSource, Source, open_source
from nt_dist.text.tokenizer import read_tokenizer

ORIGIN, RECORD = "origin.json", "prepared.json"
_SHOWN = 3  # files that a warning names
_logger = logging.getLogger(__name__)


def prepared_folder(config: Config) -> Path:
    """Where prepared texts are, a folder each: ``data.prepared``, which may have moved with its run, or the folder data
    in ``run.dir``."""
    folder = Path(os.path.expanduser(config.data.prepared)) if config.data.prepared else Path(config.run.dir) / "data"
    if not folder.parent.exists() and (moved := Path(config.run.dir) / folder.name).is_dir():
        folder = moved
    return folder.parent if (folder / RECORD).is_file() else folder  # it may name one of them


def described(config: Config) -> dict[str, Any]:
    """All that decides what prepared texts hold, but for the tokenizer's content, as plain values and as a config says
    it: no file has to be there."""
    data, is_hub = config.data, config.data.source == "hf"

    def place(path: str) -> str:
        is_place = path and not (is_hub and not os.path.isdir(path))  # the built-in source has none
        return path if not is_place else os.path.abspath(os.path.expanduser(path))

    says = {key: getattr(data, key) for key in ("source", "subset", "text_key", "max_documents", "validation")}
    says["path"] = place(data.path) if isinstance(data.path, str) else list(map(place, data.path))
    if isinstance(data.validation, str) and not is_hub:
        says["validation"] = place(data.validation)
    if data.messages_key:  # what was prepared before there were any has another name else
        says["messages_key"] = data.messages_key
    return {**says, "tokenizer": "auto" if data.tokenizer == "auto" else "given", "vocab_size": config.model.vocab_size}


def with_tokenizer(config: Config) -> dict[str, Config]:
    """The config of each source of a mixture, as if it were the only one, with the tokenizer of all; else empty."""
    tokenizer, folder = config.data.tokenizer, str(prepared_folder(config))
    if tokenizer == "auto" and config.data.sources:
        tokenizer = str(mixture_tokenizer(config))
    found = {}
    for name, one in by_source(config).items():
        prepared = dict(dict(config.data.sources)[name]).get("prepared", folder)
        found[name] = replace(one, data=replace(one.data, tokenizer=tokenizer, prepared=prepared))
    return found


def mixture_tokenizer(config: Config) -> Path:
    """Where the tokenizer is that is trained on a mixture."""
    says = {name: {**described(one), "validation": None} for name, one in by_source(config).items()}
    return prepared_folder(config) / f"tokenizer-{short_hash(['mixture', says, shares(config)])}.model"


def sources_of(config: Config) -> dict[str, Source]:
    """The texts to prepare, by the name of their files; DataError if they are not there."""
    names = ("train", "validation") if isinstance(config.data.validation, str) else ("train",)
    return {name: open_source(config.data, name) for name in names}


def origin_of(says: Any, streams: Mapping[str, Source], tokenizer_sha256: str) -> dict[str, Any]:
    """What ``origin.json`` keeps."""
    seen = {name: source.seen for name, source in streams.items()}
    return {"config": says, "files": seen, "tokenizer_sha256": tokenizer_sha256}


def find(config: Config) -> Path | None:
    """The texts that were prepared as a config says, or that ``data.prepared`` names itself; None where there are none.

    Neither the corpus nor the tokenizer has to be there any more.
    """
    if config.data.prepared and (itself := Path(os.path.expanduser(config.data.prepared)) / RECORD).is_file():
        return itself.parent
    says, sha256 = described(config), None
    if config.data.tokenizer != "auto":
        with suppress(OSError):
            sha256 = hashlib.sha256(read_tokenizer(Path(os.path.expanduser(config.data.tokenizer)))).hexdigest()
    found = [
        path
        for path in prepared_folder(config).glob(f"*/{ORIGIN}")
        if (kept := _read(path)).get("config") == says and sha256 in (None, kept.get("tokenizer_sha256"))
    ]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def compare(config: Config, folder: Path) -> None:
    """Warn where prepared texts are not what a config and its files would give now; they are used all the same."""
    kept, says = _read(folder / ORIGIN), described(config)
    remedy = f"they are used as they are; remove {folder} to prepare them anew"
    then = kept.get("config", says)
    if then != says:
        differ = ", ".join(f"{key} {then.get(key)!r}, not {now!r}" for key, now in says.items() if then.get(key) != now)
        _logger.warning("%s: texts were prepared with %s; %s", folder, differ, remedy)
        return
    try:
        now = {name: source.seen for name, source in sources_of(config).items()}
    except DataError as gone:
        _logger.info("%s; what was prepared from it is used: %s", gone, folder)
        return
    for name, before in kept.get("files", {}).items():
        after = now.get(name, {})
        changed = sorted(path for path in before | after if before.get(path) != after.get(path))
        if changed:
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            names = ", ".join(changed[:_SHOWN]) + more
            _logger.warning("%s: changed since the %s texts were prepared from it; %s", names, name, remedy)


def looks_alike(config: Config, folder: Path, tokenizer_sha256: str) -> bool:
    """Whether a config's corpus is the one that texts, known to be prepared for its run, were made from, moved perhaps:
    its files have the same names and sizes, or it is gone."""
    kept = _read(folder / ORIGIN)
    try:
        if kept and _without_places(kept["config"]) != _without_places(described(config)):
            return False
        streams = sources_of(config)
        if not kept:
            return folder.name == _key_without_origin(config, streams, tokenizer_sha256)
        now = {name: source.seen for name, source in streams.items()}
    except DataError:
        return True
    return _sizes(now) == _sizes(kept.get("files", {}))


def _sizes(files: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[str, Any]]]:
    return {name: [(os.path.basename(path), stat[0]) for path, stat in seen.items()] for name, seen in files.items()}


def _without_places(says: Mapping[str, Any]) -> dict[str, Any]:
    def name(value: Any) -> Any:
        return os.path.basename(value) if isinstance(value, str) else value

    path = says.get("path")
    paths = path if isinstance(path, list) else [path]
    return {**says, "path": list(map(name, paths)), "validation": name(says.get("validation"))}


def _key_without_origin(config: Config, streams: Mapping[str, Source], tokenizer_sha256: str) -> str:
    """The name of a folder that was prepared before there were origins: by names, sizes and times of the files."""
    share = None if "validation" in streams else config.data.validation
    files = {
        name: [type(each).__name__, each.text_key, *((Path(path).name, *stat) for path, stat in each.seen.items())]
        for name, each in streams.items()
        if isinstance(each, FileSource)
    }
    return short_hash([1, files, share, config.data.max_documents, tokenizer_sha256])


def short_hash(value: Any) -> str:
    """A short name for plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """The content of an origin; empty where there is none, or it is damaged: texts are then found by other ways."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        tables = [content[key] for key in ("config", "files") if isinstance(content, dict) and key in content]
        are_tables = len(tables) == 2 and all(isinstance(each, dict) for each in tables)
        if are_tables and all(isinstance(each, dict) for each in tables[1].values()):
            return content
    return {}
