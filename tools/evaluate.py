"""Evaluates a checkpoint: perplexity or accuracy of each trail and of their ensemble, and what the ensemble gains.

    python tools/evaluate.py --checkpoint runs/quickstart
    python tools/evaluate.py --checkpoint runs/quickstart --full --shift corrupt:0.2 --json figures.json
    python tools/evaluate.py --checkpoint runs/quickstart_images --full --shift gaussian_noise:3 --corruptions
    deepspeed --num_gpus 2 tools/evaluate.py --checkpoint runs/quickstart/checkpoints/step-00000300 --data other.txt

The checkpoint may be a run's folder: then it is the newest one. Settings of the run can be overridden, as in
run.eval_batches=0 for all validation samples; the figures are the same on any number of ranks. --full adds calibration,
diversity and the history of the topology; the keys in the JSON are explained in nt_dist/evaluation/full.py.

    python tools/evaluate.py --checkpoint runs/quickstart --tasks configs/tasks/bracket_choice.yaml --combine prob

With --tasks it is evaluated on tasks of the lm-evaluation-harness instead, by name or by file, on one rank; all the
harness's own flags: python -m nt_dist.harness --help.
"""

import argparse
import json
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.errors import RunError
from nt_dist.files import check_file, write_whole
from nt_dist.parallel import launcher


def main() -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, folder of checkpoints or run")
    parser.add_argument("--data", help="data to evaluate on: file, folder or pattern (default: the run's validation)")
    parser.add_argument("--full", action="store_true", help="all figures: calibration, diversity, topology")
    parser.add_argument(
        "--shift",
        metavar="PATH|KIND[:LEVEL]",
        help="with --full, which it implies: data to tell from these by the ensemble's uncertainty, or these "
        "corrupted: text with a share (0.1) of each sequence's tokens in each other's places (corrupt) or of its "
        "characters mistyped (misspell), pictures with one of 15 corruptions, as gaussian_noise, of severity 1 to 5; "
        "CIFAR-10-C, ImageNet-C, -A and -R are read as they are published",
    )
    parser.add_argument("--corruptions", action="store_true", help="accuracy and ECE on all corruptions")
    parser.add_argument("--tasks", help="tasks of the lm-evaluation-harness or task files, with commas between")
    parser.add_argument("--include_path", type=Path, help="with --tasks: folder of task files, known by their names")
    parser.add_argument("--combine", default="prob", help="with --tasks: prob, logit or a trail's number from 1")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--single", action="store_true", help="one rank, whatever a launcher left in the environment")
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # added by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="over the run's settings")
    arguments = parser.parse_intermixed_args()
    if arguments.single or arguments.tasks is not None:
        launcher.forget()
    with launcher.said_once_a_host():
        if arguments.json:
            check_file("--json", arguments.json)
    if arguments.tasks is not None:
        return evaluate_tasks(arguments)
    if arguments.include_path:
        raise RunError("--include_path goes with --tasks alone")

    from nt_dist.evaluation.evaluate_checkpoint import corruption, evaluate_checkpoint, join
    from nt_dist.messages import start_logging
    from nt_dist.parallel.mesh import close  # takes seconds: torch

    with launcher.said_once_a_host():
        if arguments.shift is not None:
            corruption(arguments.shift)
    start_logging(launcher.process().rank)
    mesh = join(launcher.process().world_size)
    result = evaluate_checkpoint(
        arguments.checkpoint,
        mesh,
        arguments.data,
        arguments.overrides,
        arguments.full,
        arguments.shift,
        arguments.corruptions,
    )
    if mesh.is_main:
        print(result.table())
        if arguments.json:
            result.write_json(arguments.json)
    close()
    return 0


def evaluate_tasks(arguments: argparse.Namespace) -> int:
    """Evaluate on tasks of the harness."""
    if any((arguments.data, arguments.full, arguments.shift, arguments.corruptions, arguments.overrides)):
        rule = "tasks have texts of their own"
        raise RunError(f"--tasks goes with --checkpoint, --combine and --json alone, and --include_path: {rule}")
    try:
        from nt_dist import harness  # takes seconds: torch and the harness
    except ModuleNotFoundError as missing:
        raise RunError(f"--tasks needs the extra [eval]: {missing}") from None

    tasks, folder = arguments.tasks.split(","), arguments.include_path
    table, results = harness.evaluate_tasks(arguments.checkpoint, tasks, arguments.combine, folder)
    print(table)
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=2, default=float) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
