"""Compiles a C++ file of this folder for the machine at hand, once, into a folder of the user's.

Nothing is compiled or loaded but what this package brings: the folder must be the user's own, and a library is found by
the hash of its source, of the flags and of the compiler. Processes that build at once do so beside each other; each
puts its own, equal file in place, whole. So none ever waits for another.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
_TIMEOUT = 120.0  # seconds; it takes a few


class BuildError(Exception):
    """No library: its text says why, in a line."""


def load_library(name: str, folder: Path | None = None) -> ctypes.CDLL:
    """Return the library of ``name``.cpp, compiled unless it is in ``folder`` (default: in the user's cache).

    It may include files of its own name and an underscore. BuildError where that cannot be.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
    if compiler is None:
        raise BuildError("there is no C++ compiler (g++)")
    sources = sorted(Path(__file__).parent.glob(f"{name}[._]*"))
    said = [platform.machine(), _run([compiler, "--version"]), *FLAGS, *(each.read_text("utf-8") for each in sources)]
    key = hashlib.sha256("\0".join(said).encode()).hexdigest()[:32]
    try:
        folder = _own_folder(folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nt_dist")
        library = folder / f"{name}-{key}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                made = Path(work) / library.name
                _run([compiler, *FLAGS, "-o", str(made), str(Path(__file__).with_name(f"{name}.cpp"))])
                made.replace(library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # the latter where the user has no home
        raise BuildError(" ".join(str(error).split())) from error


def _own_folder(folder: Path) -> Path:
    """Make a folder that nobody else can write to; OSError if there is one that others can."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder} must be this user's own, and writable to nobody else")
    return folder


def _run(command: list[str]) -> str:
    """Return what a command prints; BuildError with the first line of what it says is wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(" ".join(str(error).split())) from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        raise BuildError(f"{command[0]} fails: {said}")
    return done.stdout
