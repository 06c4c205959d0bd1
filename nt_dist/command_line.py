"""How every command of this project starts and, above all, ends."""

import contextlib
import errno
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from nt_dist.errors import NTDistError, printable

BAD_INPUT = 2
BUG = 1
INTERRUPTED = 130
NOBODY_READS = 141  # as a shell reports SIGPIPE
_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
TAKE_SECONDS = 1.0  # for a stream to take something
_PIECE = 1024  # characters, so that a pipe which takes anything takes all of it: PIPE_BUF is 4,096 bytes


class Telling:
    """A stream for what only tells: what it does not take is dropped, and what comes later is tried again.

    A full disk, a reader that went away and one that reads no more (a terminal after Ctrl-S) end and hold up nothing.

    Attributes:
        refused: The last error of writing.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._patience = TAKE_SECONDS
        self.refused: Exception | None = None

    def write(self, text: str) -> int:
        """Write what the stream takes of ``text``."""
        for begin in range(0, len(text), _PIECE):
            with self._trying():
                if self._takes():
                    self._stream.write(text[begin : begin + _PIECE])
                    self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Write what a try before has left in memory, if the stream takes it."""
        with self._trying():
            if self._takes():
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _takes(self) -> bool:
        """Whether writing would not wait."""
        try:
            poll = select.poll()
            poll.register(self._stream.fileno(), select.POLLOUT)
        except OSError:  # no file behind it
            return True
        takes = bool(poll.poll(1000 * self._patience))
        self._patience = TAKE_SECONDS if takes else 0.0  # the next ones are not waited for
        return takes

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as problem:  # ValueError: it is closed
            self.refused = problem


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave the process.

    Errors of the family NTDistError are printed as one line a problem, without a traceback, and end with exit code 2;
    so does what the system refuses of a file whose name the error has, wherever that is, of standard output, or for
    want of room: a file, a disk or a user did that. Any other exception ends with its traceback and 1; Ctrl-C with 130;
    a reader of stdout that went away with 141. What cannot be written to stderr is dropped.

    The process is always left with ``os._exit``, on success as well: after a good run the threads of gloo and
    DeepSpeed can abort an interpreter that is being taken down ("terminate called without an active exception"), and
    the exit code would then say that the run had failed. What ``main`` returns is the exit code, None being 0.
    """
    _fill_standard_descriptors()
    sys.stderr = Telling(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115 (for the process's life)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # some other object stands there
            stream.reconfigure(errors="backslashreplace")  # what a terminal's encoding lacks ends no command
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    code = _exit_code(main)
    logging.shutdown()
    refused = _refused_by_stdout()
    code = _say(refused) if refused and code == 0 else code
    sys.stderr.flush()
    os._exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except NTDistError as error:
        if not error.is_said:
            lines = str(error).splitlines() or [type(error).__name__]
            said = "".join(f"error: {printable(line)}\n" for line in lines)
            sys.stderr.write(said)  # in one go: other ranks write as well
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as leaving:  # argparse's --help and usage errors
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return BUG
        return leaving.code or 0
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_broken():
            return NOBODY_READS  # "… --help | head": no fault to report
        if isinstance(error, OSError):
            if refused := _refused_by_stdout():
                return _say(refused)
            if error.filename is not None or error.errno in _FULL:
                return _say(error)
        traceback.print_exc()
        return BUG


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DeepSpeed says something that commands do not say themselves, as they do which device they compute on."""
    return not record.getMessage().startswith("Setting accelerator to CPU")


def _say(refused: OSError) -> int:
    """Say what the system refused, of which file if that is known; returns the exit code."""
    name = "" if refused.filename is None else f"{printable(os.fsdecode(refused.filename))}: "
    sys.stderr.write(f"error: {name}{refused.strerror}\n")
    return BAD_INPUT


def _refused_by_stdout() -> OSError | None:
    """Why stdout, which somebody reads, does not take what was written to it, as on a full disk; else None."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):  # a closed pipe or stream: nobody is reading any more
        return None
    except OSError as problem:
        return OSError(problem.errno, problem.strerror, "standard output")
    return None


def _fill_standard_descriptors() -> None:
    """Keep files that are opened later from getting the number of a stream that is closed (``2>&-``), and with it the
    messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _stdout_is_broken() -> bool:
    """Whether the other end of stdout is closed; a write may have failed on another pipe, and that is a fault."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file behind it
        return False
