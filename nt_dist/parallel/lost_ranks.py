"""What a rank says when another one is gone: a line, so that the first error of the job stands out.

A rank that fails writes its own message before its connections close, and only then do the others fail, in whatever
collective they are; they leave with a non-zero code, which tells the launchers on their hosts.
"""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from nt_dist.errors import RunError

# gloo's words for a connection that ended, NCCL's for a process that did
LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|remote process exited")


@contextmanager
def naming_lost_ranks(rank: int) -> Iterator[None]:
    """Turn what a collective raises when a peer has gone into a RunError that says so; all else passes."""
    try:
        yield
    except RuntimeError as error:
        found = LOST.search(str(error))
        if not found:
            raise
        line = next(line for line in str(error).splitlines() if LOST.search(line))
        raise RunError(
            f"rank {rank} on {socket.gethostname()} lost another rank ({_short(line, found)}); what that one said is "
            "the first error of this job, and if it said nothing it was killed"
        ) from error


def _short(line: str, found: re.Match) -> str:
    """The words and, where gloo gives it, the peer's address."""
    address = re.search(r"\[([\w.:]+)\]:(\d+)", line)
    return f"{found[0]}: {address[1]}" if address else found[0]
