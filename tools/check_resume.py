"""Checks that a run which is killed goes on to the very numbers of one that is not, with a config and layout of yours.

    python tools/check_resume.py --config configs/quickstart.toml [--ds_config FILE] [--ranks 2] [--steps 10]
        [--folder DIR] [section.key=value ...]

On this machine it trains 2 × --steps steps in one go; starts the same again, kills all ranks (SIGKILL) some steps after
step --steps was saved, and starts it once more. Then it compares every line of metrics (loss, gradient norm, learning
rate, tokens, topology checksum ...), weights, moments and topologies at the end, and the place in the order of samples.

The schedule is that of train.steps, which must be at least 2 × --steps. To see topology updates on both sides of the
kill, give sparsity.update_every a small number or --steps a large one. Prepared data is shared by both runs; set
data.prepared to use what is there. On CPUs in fp32 everything must be equal to the bit. On GPUs that holds as far as
their kernels give the same sums twice; run it to learn whether yours do.

Exit code 0: equal. 1: not, with what differs. 2: a run failed or a setting is wrong.
"""

import argparse
import tempfile
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.config import parse_command_line
from nt_dist.errors import ConfigError
from nt_dist.families import load_config

SHOWN = 10  # differences of a kind


def main() -> int:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="ranks, all on this machine (default 1)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps before and after (default 10)")
    parser.add_argument("--folder", type=Path, help="new folder for both runs, kept (default: a temporary one)")
    arguments, rest = parser.parse_known_args()
    for name in ("ranks", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: must be at least 1")
    if arguments.folder and arguments.folder.exists():
        parser.error(f"--folder {arguments.folder}: must not be there yet")
    path, ds_config, overrides = parse_command_line(rest)
    config = load_config(path, overrides, ds_config, world_size=arguments.ranks)
    if config.train.steps < 2 * arguments.steps:
        rule = f"must be at least 2 × --steps = {2 * arguments.steps}"
        raise ConfigError([f"train.steps = {config.train.steps} {rule}"])
    with tempfile.TemporaryDirectory(prefix="check-resume-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepared = [] if config.data.prepared else [f"data.prepared={folder / 'data'}"]
        return check(folder, (path, ds_config, [*overrides, *prepared]), arguments.ranks, arguments.steps)


def check(folder: Path, training: tuple[str, str | None, list[str]], ranks: int, half: int) -> int:
    """Check one config, print what was found and return the exit code."""
    from nt_dist.training.resume_check import check_resume, training_command

    script = Path(__file__).resolve().parents[1] / "train.py"
    found = check_resume(training_command(script, *training), folder, ranks, half)
    print(f"killed at step {found.killed_at}, resumed from step {half}, compared up to step {found.steps}")
    state = found.state
    differing = [name for name, each in state.weights.items() if not each.is_none]
    _show("lines of metrics", found.lines)
    _show("weights, moments and topologies", [f"{name} differs" for name in differing])
    _show("step, schedule and order of samples", state.state)
    print("the resumed run is " + ("the uninterrupted one" if found.is_same else "NOT the uninterrupted one"))
    return 0 if found.is_same else 1


def _show(what: str, problems: list[str]) -> None:
    """Print whether something is equal, and the first differences."""
    print(f"{what}: {f'{len(problems)} differences' if problems else 'equal'}")
    for problem in problems[:SHOWN]:
        print(f"  {problem}")


if __name__ == "__main__":
    run_main(main)
