"""Breaks one thing at a time in a copy of the tree, and sees the test that guards it fail.

    nice -n 10 python -m tests.mutations [--only WORD] [--timeout SECONDS] [--output FILE]

Each entry of MUTATIONS replaces one text, which stands once in the code, and names the test that must then fail. Prints
a Markdown table, a line at a time; exit code 1 if a test passed, or failed to run at all. No test itself: pytest does
not collect it, tests/unit/test_mutations.py sees that the texts are there.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.forked import import_libraries, run_pytest
from tests.mutations import MUTATIONS
from tests.mutations.mutation import Mutation

ROOT = Path(__file__).parents[2]
COPIED = ("nt_dist", "benchmarks", "launch_scripts", "tests", "configs", "pyproject.toml")
TESTS_FAILED = 1  # pytest's exit code; others: it was interrupted, could not collect, found no test


@dataclass(frozen=True)
class Outcome:
    """What a test did on a broken tree: whether it failed as it should, why, and how long it took."""

    failed: bool
    reason: str
    seconds: float


def run(mutation: Mutation, tree: Path, timeout: float) -> Outcome:
    """Break ``tree``, run the test in it, mend it again."""
    file, log, began = mutation.file(tree), tree / "log", time.monotonic()
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    log.unlink(missing_ok=True)
    arguments = ["-q", "-x", "-rf", "--tb=line", "-p", "no:cacheprovider", mutation.test]
    code = run_pytest(arguments, tree, log, timeout)
    file.write_text(whole, encoding="utf-8")
    output = log.read_text(encoding="utf-8")
    found = re.search(r"^FAILED .*? - (.*)$", output, re.MULTILINE)
    reason = f"no end within {timeout:g} s" if code is None else found[1] if found else output.splitlines()[-1]
    return Outcome(code == TESTS_FAILED, reason, time.monotonic() - began)


def main() -> int:
    """Run all mutations, or some; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose description or test has this word")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one test (default 600)")
    parser.add_argument("--output", type=Path, help="file that the table is also written to")
    arguments = parser.parse_args()
    import_libraries()
    lines = ["| what is broken | test | failed as it should | with | s |", "|---|---|---|---|---|"]
    right = True
    with tempfile.TemporaryDirectory(prefix="nt_dist_mutations_") as folder:
        tree = Path(folder) / "tree"
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            (tree / name).parent.mkdir(exist_ok=True)
            copy(ROOT / name, tree / name)
        for compiled in list(tree.rglob("__pycache__")):
            shutil.rmtree(compiled)
        print("\n".join(lines), flush=True)
        for mutation in MUTATIONS:
            if arguments.only not in f"{mutation.what} {mutation.test}":
                continue
            outcome = run(mutation, tree, arguments.timeout)
            right &= outcome.failed
            reason = outcome.reason.replace("|", "\\|")[:80]
            test = mutation.test.rpartition("/")[2]
            lines.append(
                f"| {mutation.what} | `{test}` | {'yes' if outcome.failed else '**no**'} | {reason} | "
                f"{outcome.seconds:.0f} |"
            )
            print(lines[-1], flush=True)
            if arguments.output:
                arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
