"""Files that are whole or not there, whenever the program ends."""

import contextlib
import os
from pathlib import Path

from nt_dist.errors import RunError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, in place of what was there, by one rename; its folder is made where there is none.

    Args:
        path: The file.
        content: Bytes, or text for UTF-8.

    Raises:
        RunError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as problem:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunError(f"{path}: cannot be written: {problem.strerror}") from None
