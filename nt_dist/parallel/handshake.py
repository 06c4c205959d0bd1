"""All ranks run the same thing: digests of it are compared at start, and the rank that differs is named.

A rank that was started with another config, from another checkout or over other data would otherwise hang in a
collective, or, worse, train.
"""

import contextlib
import functools
import hashlib
import platform
import socket
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nt_dist.config.settings import Config, by_key
from nt_dist.errors import RunError

if TYPE_CHECKING:
    from nt_dist.parallel.world import World  # imports torch, which nothing here needs

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "deepspeed", "megatron-core")


def check_alike(ranks: "World", what: str, parts: dict[str, Any]) -> None:
    """Make sure that all ranks hold the same ``parts`` (values by name, compared as their ``repr``) of ``what``.

    What any rank says travels to the others only where digests differ. Then a RunError on every rank names the ranks
    (and hosts) that differ from most, and what they differ in.
    """
    said = {name: repr(value) for name, value in parts.items()}
    digest = hashlib.sha256(repr(sorted(said.items())).encode()).digest()
    if ranks.is_same(digest):
        return
    digests = ranks.gather_objects(digest)
    usual, _ = Counter(digests).most_common(1)[0]  # the lowest rank's, where as many say one as the other
    everybody = ranks.gather_objects((socket.gethostname(), said))
    expected_by = digests.index(usual)
    expected = everybody[expected_by][1]
    lines = []
    for rank, (host, own) in enumerate(everybody):
        if digests[rank] != usual:
            differences = ", ".join(
                f"{name} = {own.get(name, 'missing')} (rank {expected_by}: {expected.get(name, 'missing')})"
                for name in sorted(expected.keys() | own.keys())
                if own.get(name) != expected.get(name)
            )
            lines.append(f"rank {rank} on {host} has another {what}: {differences}")
    error = RunError("\n".join(lines))
    error.is_said = not ranks.is_main
    raise error


def check_config_and_code(ranks: "World", config: Config) -> None:
    """Make sure that all ranks have the same settings and run the same code; raises RunError on every rank."""
    check_alike(ranks, "config", by_key(config.to_dict()) | {"the DeepSpeed JSON": config.deepspeed})
    check_alike(ranks, "code version", code_version())


def code_version() -> dict[str, str]:
    """Digests of this package's source files, and the versions of what it stands on."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    versions["python"] = platform.python_version()
    for path in sorted(PACKAGE.rglob("*.py")):
        versions[f"nt_dist/{path.relative_to(PACKAGE).as_posix()}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return versions


@functools.cache
def commit() -> str:
    """The commit of the checkout that this package is run from, with + behind it where files differ from it; empty
    where it is in none, or git cannot say."""
    root = PACKAGE.parent
    if (root / ".git").exists():
        command = ["git", "-C", root, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return ""
