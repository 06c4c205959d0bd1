"""What a run says in words: the main rank's messages as they are, other ranks' only when something is wrong."""

import logging
import sys

from nt_dist.progress import ProgressBar

LOGGER = logging.getLogger("nt_dist")


class BarHandler(logging.StreamHandler):
    """Writes messages to standard error, above the progress bar where there is one: on the main rank as they are, or as
    ``warning: message``, on another as ``[rank 3] warning: message``."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.bar: ProgressBar | None = None
        self._prefix = f"[rank {rank}] " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        """The message with what stands before it."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return self._prefix + level + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a failure to write is reported by ``logging`` and stops nothing."""
        self.stream = self.bar or sys.stderr
        super().emit(record)


def start_logging(rank: int) -> BarHandler:
    """Makes this process log as its rank should; DeepSpeed's own logger is left at warnings. Returns the handler."""
    LOGGER.handlers = [BarHandler(rank)]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    return LOGGER.handlers[0]
