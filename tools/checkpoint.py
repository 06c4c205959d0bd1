"""Looks after the checkpoints of a run.

    python tools/checkpoint.py list FOLDER                      what there is, from old to new
    python tools/checkpoint.py verify CHECKPOINT|FOLDER …       every hash, every position, every number
    python tools/checkpoint.py prune FOLDER --keep 2 [--keep_every 1000] [--dry_run]
    python tools/checkpoint.py diff CHECKPOINT CHECKPOINT       settings, progress, topologies, values, moments

FOLDER is a run's folder or its folder of checkpoints. verify of a damaged checkpoint ends with exit code 1, so does
diff of two that differ in more than their settings; bad input ends with 2.
"""

import argparse
import itertools
from pathlib import Path

from nt_dist.checkpoint import inspect as checkpoint_inspect
from nt_dist.checkpoint.folder import checkpoints, delete, to_prune
from nt_dist.command_line import run_main
from nt_dist.errors import printable


def list_checkpoints(arguments: argparse.Namespace) -> int:
    """Print a line for each checkpoint."""
    for found in checkpoint_inspect.in_folder(arguments.folder):
        print(printable(checkpoint_inspect.describe(found)))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check checkpoints wholly; 1 if one is damaged."""
    damaged = 0
    asked = [[found.path for found in checkpoints(path)] or [path] for path in arguments.checkpoints]
    for path in itertools.chain.from_iterable(asked):
        problems = checkpoint_inspect.examine(path)
        damaged += bool(problems)
        print(f"{path}: {'damaged' if problems else 'whole'}")
        for problem in problems:
            print(f"  {printable(problem)}")
    return min(damaged, 1)


def prune(arguments: argparse.Namespace) -> int:
    """Delete the checkpoints that are not to be kept."""
    for found in to_prune(checkpoint_inspect.in_folder(arguments.folder), arguments.keep, arguments.keep_every):
        print(f"{'would delete' if arguments.dry_run else 'deleting'} {found.path}")
        if not arguments.dry_run:
            delete(found)
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """Print how two checkpoints differ; 1 if their progress, topologies, values or moments do."""
    found = checkpoint_inspect.compare(arguments.first, arguments.second)
    changed = {name: each for name, each in found.weights.items() if not each.is_none}
    equal, weights = len(found.weights) - len(changed), len(found.weights)
    active, shared = (sum(getattr(each, key) for each in found.weights.values()) for key in ("active", "shared"))
    print(
        f"{len(found.settings)} settings and {len(found.state)} entries of the progress differ, {len(changed)} of "
        f"{weights} weights; {shared / max(active, 1):.1%} of all active entries are shared"
    )
    for line in [*found.settings, *found.state]:
        print(printable(line))
    for name in sorted(changed, key=checkpoint_inspect.in_order):
        each = changed[name]
        largest = ", ".join(f"{part} {difference:.3g}" for part, difference in each.largest.items())
        shared = f"{each.shared} of {each.active} active entries shared"
        print(f"{printable(name)}: {shared}; largest difference of {largest}")
    print(f"{equal} of {weights} weights are equal in topology, values and moments")
    return 0 if found.is_same_state else 1


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="list|verify|prune|diff")
    command = commands.add_parser("list", help="what there is, from old to new")
    command.add_argument("folder", type=Path)
    command.set_defaults(work=list_checkpoints)
    command = commands.add_parser("verify", help="check checkpoints wholly")
    command.add_argument("checkpoints", type=Path, nargs="+")
    command.set_defaults(work=verify)
    command = commands.add_parser("prune", help="delete old checkpoints")
    command.add_argument("folder", type=Path)
    command.add_argument("--keep", type=count, required=True, help="newest checkpoints to keep")
    command.add_argument("--keep_every", type=count, default=0, help="keep also steps that are a multiple")
    command.add_argument("--dry_run", action="store_true", help="only say what would be deleted")
    command.set_defaults(work=prune)
    command = commands.add_parser("diff", help="how two checkpoints differ")
    command.add_argument("first", type=Path)
    command.add_argument("second", type=Path)
    command.set_defaults(work=diff)
    arguments = parser.parse_args()
    return arguments.work(arguments)


if __name__ == "__main__":
    run_main(main)
