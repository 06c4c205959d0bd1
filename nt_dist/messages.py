"""What a run says in words: the main rank's messages as they are, other ranks' only when something is wrong.

Messages share the terminal with the progress bar, which is drawn on the last line: while there is a bar, they are
written above it.
"""

import logging
import sys

from nt_dist.progress import ProgressBar

LOGGER = logging.getLogger("nt_dist")


class BarHandler(logging.Handler):
    """Writes messages to standard error, above the progress bar where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: ProgressBar | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a failure to write is reported by ``logging`` and stops nothing."""
        try:
            message = self.format(record)
            if self.bar is not None:
                self.bar.line(message)
            else:
                sys.stderr.write(message + "\n")
                sys.stderr.flush()
        except Exception:  # as every handler of the standard library: a message must not end a run
            self.handleError(record)


class _Formatter(logging.Formatter):
    """``message`` from the main rank, ``warning: message`` above that, ``[rank 3] warning: message`` elsewhere."""

    def __init__(self, rank: int):
        super().__init__("%(message)s")
        self._prefix = f"[rank {rank}] " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return self._prefix + level + super().format(record)


def start_logging(rank: int) -> BarHandler:
    """Makes this process log as its rank should; DeepSpeed's own logger is left at warnings.

    Args:
        rank: This process's rank.

    Returns:
        The handler, whose ``bar`` may be set to the progress bar of the run.
    """
    handler = BarHandler()
    handler.setFormatter(_Formatter(rank))
    for old in LOGGER.handlers[:]:
        LOGGER.removeHandler(old)
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    return handler
