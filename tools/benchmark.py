"""Measures what sparsity costs and saves on this machine, mostly on one rank; prints Markdown.

    python tools/benchmark.py speed [--densities 0.9,0.2] [--rounds 7] [--steps 2] [--cpu_time]
    python tools/benchmark.py memory [--densities 0.1,0.2,0.5,0.9,1]
    torchrun --nproc-per-node 2 tools/benchmark.py communication [--densities 0.1,0.2,0.5,0.9,1]
    torchrun --nproc-per-node 2 tools/benchmark.py trunk [--rounds 7] [--steps 2] trails.count=4 parallel.trail=2
    python tools/benchmark.py control [--ranks 2,4,8,16,32]
    python tools/benchmark.py inference [--densities 0.1,0.3,0.5,0.7,0.9] [--rounds 5] [--prompt 128] [--steps 32]
    python tools/benchmark.py loading --config configs/vision_mini.toml [--rounds 7] [--cpu_time] [--workers 2]
    python tools/benchmark.py saving [--rounds 7] [--steps 2] [--folder runs]
    python tools/benchmark.py decoding [--densities 0.1,0.2,0.3,0.5,0.7,0.9] [--rounds 7] [--steps 16]
    python tools/benchmark.py counts --config configs/paper/llama_350m.toml

speed: tokens or pictures per second of the trainer against the same model of plain dense layers in a plain PyTorch loop
(a fused optimizer; with train.precision=bf16, a bf16 module with fp32 masters), in turns; and what a topology update
adds to training, averaged over sparsity.update_every. memory: bytes per stored parameter, counted / by formula.
communication: bytes that data-parallel ranks send in a step, counted at the collectives, on two or more ranks. control:
what ranks tell each other besides gradients, in real runs of a tiny model here, and what thousands would. trunk:
time, bytes and memory of a step where trail ranks split the trunk's micro-batch, and where each computes all of it, in
turns. inference: tokens per second and memory of the exported ensemble, a single dense model and a full dense ensemble
on the CPU, for a prompt read at once and for text written token by token. loading: pictures per second of the loader
beside those of a training step; with --workers also threads against as many processes. saving: how long the training
stands still for a checkpoint written in its way and beside it, in --folder. decoding: products of one vector with
matrices that are held as bitmaps, read one after the other, and tokens per second of models that hold them so, as
tools/generate.py does. counts: kernels that a GPU has to launch for a micro-batch, forward and backward, and the bytes
that they read and write; nothing is run. All take --config (default configs/bench_speed.toml), --ds_config, --json FILE
and section.key=value; --inference is inference, and so on.
"""

import argparse
import json
import sys
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.config import parse_command_line
from nt_dist.families import load_config
from nt_dist.files import check_file, write_whole
from nt_dist.parallel import launcher

CONFIG = "configs/bench_speed.toml"


def densities(text: str) -> list[float]:
    """Parse a list such as "0.9,0.2"; the config's rules judge the numbers."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers with commas between") from None


def counts(text: str) -> list[int]:
    """Parse a list of numbers of ranks such as "2,4"."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or any(each < 2 or each % 2 for each in found):
        raise argparse.ArgumentTypeError(f"{text!r} must be even numbers of ranks with commas between")
    return found


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    speed = commands.add_parser("speed", help="tokens per second against a plain loop")
    speed.add_argument("--densities", type=densities, default=[0.9, 0.2])
    memory = commands.add_parser("memory", help="bytes per stored parameter")
    memory.add_argument("--densities", type=densities, default=[0.1, 0.2, 0.5, 0.9, 1.0])
    traffic = commands.add_parser("communication", help="bytes between data ranks")
    traffic.add_argument("--densities", type=densities, default=[0.1, 0.2, 0.5, 0.9, 1.0])
    control = commands.add_parser("control", help="what ranks tell each other besides gradients")
    control.add_argument("--ranks", type=counts, default=[2, 4, 8, 16, 32], help="numbers of ranks to run")
    saving = commands.add_parser("saving", help="how long a save stops the training")
    saving.add_argument("--folder", type=Path, default=Path("runs"), help="on the disk to be measured (default runs)")
    loading = commands.add_parser("loading", help="pictures per second of the loader")
    loading.add_argument("--workers", type=positive, default=0, help="threads and processes to compare (default: none)")
    trunk = commands.add_parser("trunk", help="a trunk that trail ranks split against a replicated one")
    commands.add_parser("counts", help="kernels and bytes of a micro-batch on a GPU")
    for command in (speed, trunk, saving, loading):
        command.add_argument("--rounds", type=positive, default=7, help="each contender's turns (default 7)")
    for command in (speed, trunk, saving):
        command.add_argument("--steps", type=positive, default=2, help="steps in a turn (default 2)")
    inference = commands.add_parser("inference", help="tokens per second of a trained model in use")
    inference.add_argument("--densities", type=densities, default=[0.1, 0.3, 0.5, 0.7, 0.9])
    inference.add_argument("--rounds", type=positive, default=5, help="each contender's turns (default 5)")
    inference.add_argument("--prompt", type=positive, default=128, help="tokens read at once (default 128)")
    inference.add_argument("--steps", type=positive, default=32, help="tokens written (default 32)")
    decoding = commands.add_parser("decoding", help="products with bitmaps, and writing with them")
    decoding.add_argument("--densities", type=densities, default=[0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    decoding.add_argument("--rounds", type=positive, default=7, help="each contender's turns (default 7)")
    decoding.add_argument("--steps", type=positive, default=16, help="tokens written in a turn (default 16)")
    for command in (speed, loading, inference, decoding):
        command.add_argument("--cpu_time", action="store_true", help="time computed, on one thread, not time passed")
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, help="file for all figures")
    words = [word.removeprefix("--") if word.removeprefix("--") in commands.choices else word for word in sys.argv[1:]]
    arguments, rest = parser.parse_known_args(words)  # --inference is inference
    path, ds_config, overrides = parse_command_line(["--config", CONFIG, *rest])
    if arguments.json:
        check_file("--json", arguments.json)
    joins_later = arguments.what in ("communication", "trunk")  # what is counted must be wrapped before
    ranks = launcher.process().world_size if joins_later else 1
    config = load_config(path, overrides, ds_config, world_size=ranks, check_paths=False)

    # takes seconds: torch and DeepSpeed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package
    from benchmarks import run
    from nt_dist.parallel.mesh import close, init_mesh

    def say(line: str) -> None:
        if launcher.process().rank == 0:
            print(line, file=sys.stderr, flush=True)

    without = ("inference", "decoding", "counts", "control")  # the last makes ranks of its own
    needs_none = joins_later or arguments.what in without
    mesh = None if needs_none else init_mesh(config)
    if arguments.what == "counts":
        table, figures = run.run_counts(config)
    elif arguments.what == "communication":
        table, figures = run.run_communication(config, arguments.densities)
    elif arguments.what == "control":
        table, figures = run.run_control(arguments.ranks, say)
    elif arguments.what == "trunk":
        table, figures = run.run_trunk(config, say, num_rounds=arguments.rounds, num_steps=arguments.steps)
    elif arguments.what == "speed":
        turns = {"num_rounds": arguments.rounds, "num_steps": arguments.steps, "cpu_time": arguments.cpu_time}
        table, figures = run.run_speed(config, mesh, arguments.densities, say, **turns)
    elif arguments.what == "inference":
        turns = {"num_rounds": arguments.rounds, "prompt": arguments.prompt, "num_steps": arguments.steps}
        turns["cpu_time"] = arguments.cpu_time
        table, figures = run.run_inference(config, arguments.densities, say, **turns)
    elif arguments.what == "decoding":
        turns = {"num_rounds": arguments.rounds, "num_steps": arguments.steps, "cpu_time": arguments.cpu_time}
        table, figures = run.run_decoding(config, arguments.densities, say, **turns)
    elif arguments.what == "loading":
        turns = {"num_rounds": arguments.rounds, "cpu_time": arguments.cpu_time, "num_workers": arguments.workers}
        table, figures = run.run_loading(config, mesh, **turns)
    elif arguments.what == "saving":
        turns = {"num_rounds": arguments.rounds, "num_steps": arguments.steps}
        table, figures = run.run_saving(config, mesh, arguments.folder, **turns)
    else:
        table, figures = run.run_memory(config, mesh, arguments.densities, say)
    close()
    if launcher.process().rank > 0:
        return 0
    print(table)
    if arguments.json:
        write_whole(arguments.json, json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
