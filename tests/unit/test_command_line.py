"""How commands end: their exit code, what they print, and nothing that runs at interpreter exit."""

import errno
import io
import os
import subprocess
import sys

import pytest

from nt_dist.command_line import Telling

HEAD = """
import atexit, logging, sys
from nt_dist.command_line import run_main
from nt_dist.errors import ConfigError, DataError
atexit.register(lambda: print("atexit ran"))
"""

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

ENDS = {
    "success": ("print('done')", 0, "done\n", ""),
    "code": ("print('stopping', end=''); return 3", 3, "stopping", ""),
    "bad input": ("raise ConfigError(['a = 1 must be 2', 'b is no setting'])", 2, "", None),
    "data": ("raise DataError('x.bin: truncated')", 2, "", "error: x.bin: truncated\n"),
    "said by another rank": ("error = DataError('x.bin: truncated'); error.is_said = True; raise error", 2, "", ""),
    "a file": ("open('x' * 300)", 2, "", f"error: {'x' * 300}: File name too long\n"),
    "a disk": ("raise OSError(28, 'No space left on device')", 2, "", "error: No space left on device\n"),
    "interrupt": ("raise KeyboardInterrupt", 130, "", "interrupted\n"),
    "help": ("sys.exit()", 0, "", ""),
    "usage": ("sys.exit(2)", 2, "", ""),
    "DeepSpeed": (
        "say = logging.getLogger('DeepSpeed').warning; say('Setting accelerator to CPU.'); say('No')",
        0,
        "",
        "No\n",
    ),
    "exit text": ("sys.exit('no')", 1, "", "no\n"),
}


def run(body):
    code = HEAD + f"def main():\n    {body}\nrun_main(main)\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=BUFFERED)


@pytest.mark.parametrize("name", ENDS)
def test_ends(name):
    body, code, stdout, stderr = ENDS[name]
    result = run(body)
    assert (result.returncode, result.stdout) == (code, stdout)
    expected = "error: a = 1 must be 2\nerror: b is no setting\n" if stderr is None else stderr
    assert result.stderr == expected


def test_what_the_encoding_lacks_is_written_in_another_way():
    code = HEAD + "def main():\n    print('…'); raise DataError('naïve: no file')\nrun_main(main)\n"
    environment = BUFFERED | {"PYTHONIOENCODING": "ascii:strict"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (2, "\\u2026\n", "error: na\\xefve: no file\n")


def test_a_bug_shows_its_traceback():
    result = run("return 1 / 0")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ZeroDivisionError" in result.stderr


def test_threads_that_never_end_do_not_hold_the_process():
    result = run("import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()")
    assert result.returncode == 0


def test_buffered_log_records_are_written():
    body = (
        "import logging.handlers; h = logging.handlers.MemoryHandler(99, target=logging.StreamHandler(sys.stdout)); "
        "logging.getLogger('a').addHandler(h); logging.getLogger('a').warning('kept')"
    )
    assert run(body).stdout == "kept\n"


@pytest.mark.parametrize(("body", "code"), [("sys.stdout.write('x' * 10)", 0), ("print('x' * 100_000)", 141)])
def test_a_reader_that_went_away_is_no_bug(body, code):
    script = HEAD + f"def main():\n    {body}\nrun_main(main)\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], env=BUFFERED, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == code


@pytest.mark.parametrize("body", ["print('lost')", "print('lost', flush=True)", "print('x' * 100_000)"])
def test_output_that_a_full_disk_does_not_take_is_an_error(body):
    script = HEAD + f"def main():\n    {body}\nrun_main(main)\n"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=BUFFERED)
    name = "" if "x" in body else "standard output: "  # what is longer than its buffer may have left that already
    assert (done.returncode, done.stderr) == (2, f"error: {name}No space left on device\n")


@pytest.mark.parametrize("reader", ["gone", "sleeps"])
def test_nobody_who_reads_messages_ends_or_holds_up_nothing(reader):
    body = "[print('x' * 9_999, file=sys.stderr) for _ in range(99)]; print('done')"
    script = HEAD + f"def main():\n    {body}\nrun_main(main)\n"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(["timeout", "20", sys.executable, "-c", script], env=BUFFERED, **pipes) as process:
        if reader == "gone":
            process.stderr.close()
        assert process.stdout.read() == b"done\n" and process.wait() == 0


def test_no_file_gets_the_number_of_a_closed_stream():
    body = "file = open(__import__('os').devnull); sys.stderr.write('x'); print(file.fileno() > 2)"
    script = HEAD + f"def main():\n    {body}\nrun_main(main)\n"
    command = ["bash", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, env=BUFFERED).stdout == "True\n"


def test_what_a_stream_does_not_take_is_dropped_and_the_rest_is_not():
    class Disk(io.StringIO):
        is_full = True

        def write(self, text):
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    disk = Disk()
    stream = Telling(disk)
    stream.write("lost\n")
    assert stream.refused.errno == errno.ENOSPC
    disk.is_full = False
    stream.write("kept\n")
    stream.flush()
    assert disk.getvalue() == "kept\n" and not stream.isatty()


def test_another_broken_pipe_is_a_bug():
    result = run("raise BrokenPipeError('of a worker')")
    assert result.returncode == 1 and "of a worker" in result.stderr
