"""Measures what sparsity costs and saves on this machine, mostly on one rank; prints Markdown.

    python tools/benchmark.py speed [--densities 0.9,0.2] [--rounds 7] [--steps 2]
    python tools/benchmark.py memory [--densities 0.1,0.2,0.5,0.9,1]
    torchrun --nproc-per-node 2 tools/benchmark.py communication [--densities 0.1,0.2,0.5,0.9,1]
    python tools/benchmark.py saving [--rounds 5] [--steps 5] [--folder runs]

speed: tokens per second of the trainer against the same model of plain dense linear layers in a plain PyTorch loop
(fused AdamW; with train.precision=bf16, a bf16 module with fp32 masters), in turns; and what a topology update adds to
training, averaged over sparsity.update_every. memory: bytes per stored parameter, counted / by formula.
communication: bytes that data-parallel ranks send in a step, counted at the collectives, on two or more ranks. saving:
how long the training stands still for a checkpoint written in its way and beside it, in --folder. All take --config
(default configs/bench_speed.toml), --ds_config, --json FILE and section.key=value.
"""

import argparse
import json
import sys
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.config import load_config, parse_command_line
from nt_dist.parallel import launcher

CONFIG = "configs/bench_speed.toml"


def densities(text: str) -> list[float]:
    """Parse a list such as "0.9,0.2"; the config's rules judge the numbers."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between") from None


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True, metavar="speed|memory|communication|saving")
    speed = commands.add_parser("speed", help="tokens per second against a plain loop")
    speed.add_argument("--densities", type=densities, default=[0.9, 0.2])
    speed.add_argument("--rounds", type=positive, default=7, help="each contender's turns (default 7)")
    speed.add_argument("--steps", type=positive, default=2, help="steps in a turn (default 2)")
    memory = commands.add_parser("memory", help="bytes per stored parameter")
    memory.add_argument("--densities", type=densities, default=[0.1, 0.2, 0.5, 0.9, 1.0])
    traffic = commands.add_parser("communication", help="bytes between data ranks")
    traffic.add_argument("--densities", type=densities, default=[0.1, 0.2, 0.5, 0.9, 1.0])
    saving = commands.add_parser("saving", help="how long a save stops the training")
    saving.add_argument("--rounds", type=positive, default=5, help="saves of each kind (default 5)")
    saving.add_argument("--steps", type=positive, default=5, help="ordinary steps before each (default 5)")
    saving.add_argument("--folder", type=Path, default=Path("runs"), help="on the disk to be measured (default runs)")
    for command in (speed, memory, traffic, saving):
        command.add_argument("--json", type=Path, help="file for all figures")
    arguments, rest = parser.parse_known_args()
    path, ds_config, overrides = parse_command_line(["--config", CONFIG, *rest])
    ranks = launcher.world_size() if arguments.what == "communication" else 1
    config = load_config(path, overrides, ds_config, world_size=ranks, check_paths=False)

    from nt_dist.benchmark.run import (
        run_communication,
        run_memory,
        run_saving,
        run_speed,
    )  # takes seconds: torch and DeepSpeed
    from nt_dist.parallel.mesh import close, init_mesh

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    mesh = None if arguments.what == "communication" else init_mesh(config)
    if arguments.what == "communication":
        table, figures = run_communication(config, arguments.densities)
    elif arguments.what == "speed":
        turns = {"num_rounds": arguments.rounds, "num_steps": arguments.steps}
        table, figures = run_speed(config, mesh, arguments.densities, say, **turns)
    elif arguments.what == "saving":
        table, figures = run_saving(config, mesh, arguments.folder, arguments.rounds, arguments.steps)
    else:
        table, figures = run_memory(config, mesh, arguments.densities, say)
    close()
    if launcher.rank() > 0:
        return 0
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_main(main)
