"""What the sections ``[data]`` of all families say alike: where samples come from, and what is validated on.

The default of ``data.source`` is built in and needs no path; "hf" is the Hugging Face hub, the others are files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nt_dist.config.keys import Rule, reads
from nt_dist.config.rules import ignored
from nt_dist.config.settings import Config

_ONE_NAME = {"hf": "a dataset", "folder": "a folder"}  # what data.path names where it cannot be several


def path_or_share(what: str) -> Rule:
    """The rule of ``data.validation``, given in words what it may be."""
    return Rule(f"must be {what} in (0, 1)", lambda value: value != "" if isinstance(value, str) else 0 < value < 1)


def _is_built_in(config: Config) -> bool:
    return config.data.source == type(config.data).source


@reads("data.source", "data.path")
def source_has_a_path(config: Config) -> Iterator[str]:
    path, source = config.data.path, config.data.source
    if _is_built_in(config):
        return
    if not path or (not isinstance(path, str) and "" in path):
        what = _ONE_NAME.get(source, "files, folders or patterns")
        yield f"data.path = {path!r} must name {what} with data.source = {source!r}"
    elif source in _ONE_NAME and not isinstance(path, str):
        yield f"data.path = {list(path)} must be one name with data.source = {source!r}"


def ignored_settings(config: Config) -> Iterator[str]:
    because = f"data.source = {config.data.source!r}"
    if _is_built_in(config):
        yield from ignored(config, because, "data.path")
    if config.data.source != "hf":
        yield from ignored(config, because, "data.subset")


def paths(config: Config) -> list[tuple[str, str]]:
    """The key and path of each file, folder and pattern; what names something of the hub is none."""
    data = config.data
    if data.source == "hf":
        return []
    sources = [data.path] if isinstance(data.path, str) else data.path
    found = [] if _is_built_in(config) else [("data.path", path) for path in sources]
    return [*found, ("data.validation", data.validation)] if isinstance(data.validation, str) else found


def name_of(config: Config) -> str:
    """What to call the data of a config."""
    names = [name for name, _ in getattr(config.data, "sources", ())]
    return f"data.sources {', '.join(names)}" if names else f"data.source = {config.data.source!r}"


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Values by key, of the paths of data the last part alone: what was moved is the same, as far as a config can
    tell."""

    def last(value: Any) -> Any:
        return (
            Path(value).name if isinstance(value, str) else list(map(last, value)) if isinstance(value, list) else value
        )

    places = [key for key in settings if key.removeprefix("data.") in ("path", "validation")]
    return settings | {key: last(settings[key]) for key in places}
