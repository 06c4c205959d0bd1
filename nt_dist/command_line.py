"""How every command of this project starts and, above all, ends."""

import contextlib
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from nt_dist.errors import NTDistError, printable

BAD_INPUT = 2
BUG = 1
INTERRUPTED = 130
NOBODY_READS = 141  # as a shell reports SIGPIPE


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave the process.

    Errors of the family NTDistError are printed as one line a problem, without a traceback, and end with exit code 2;
    any other exception with its traceback and 1; Ctrl-C with 130; a reader of stdout that went away with 141.

    The process is always left with ``os._exit``, on success as well: after a good run the threads of gloo and
    DeepSpeed can abort an interpreter that is being taken down ("terminate called without an active exception"), and
    the exit code would then say that the run had failed. What ``main`` returns is the exit code, None being 0.
    """
    code = _exit_code(main)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe or stream: nobody is reading any more
            stream.flush()
    os._exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except NTDistError as error:
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
        traceback.print_exc()
        return BUG


def _stdout_is_broken() -> bool:
    """Whether the other end of stdout is closed; a write may have failed on another pipe, and that is a fault."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file behind it
        return False
