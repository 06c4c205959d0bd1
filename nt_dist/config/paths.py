"""Whether the files that a config names are there."""

import glob
import os
from collections.abc import Collection

from nt_dist.config.settings import Config

_FILES = ("text", "jsonl", "parquet")


def check_paths(config: Config, wrong: Collection[str]) -> list[str]:
    """Look for the config's files.

    Args:
        config: Settings.
        wrong: Keys whose values are known to be wrong; they are left out.

    Returns:
        One message for each path or pattern at which there is nothing.
    """
    named: list[tuple[str, str]] = []
    data = config.data
    if data.source in _FILES:
        named += [("data.path", path) for path in ([data.path] if isinstance(data.path, str) else data.path)]
    if data.source != "hf" and isinstance(data.validation, str):  # for hf it is the name of a split
        named.append(("data.validation", data.validation))
    if data.tokenizer != "auto":
        named.append(("data.tokenizer", data.tokenizer))
    named.append(("run.resume_from", config.run.resume_from))
    return [
        f"{key} = {path!r}: no such file or folder"
        for key, path in named
        if path and key not in wrong and not _there(path)
    ]


def _there(path: str) -> bool:
    path = os.path.expanduser(path)
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))
