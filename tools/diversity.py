"""Sweeps density, trail length and joint loss, and draws what the ensemble gains against how its trails differ.

    python tools/diversity.py --config configs/bench_mini.toml --steps 400 --out runs/diversity
        [--densities 0.2,0.5,0.9] [--layers 1,2,4,6] [--joints 0,0.5] [--points 0.9:4,0.5:2]
        [--launcher "deepspeed --num_gpus 2"] [section.key=value …]

Each point is a run of its own in OUT; started again, the sweep goes on where it was. --points trains and shows some of
the points alone; --no_train shows those that have been trained. The warm-up is scaled with the steps.
"""

import argparse
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.config import parse_command_line
from nt_dist.errors import RunError
from nt_dist.files import check_folder
from nt_dist.study.plan import parse_points, plan_sweep


def main() -> int:
    """Parse the command line, train what is missing and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/diversity"), help="folder of the study")
    parser.add_argument("--steps", type=int, help="steps of each run (default: the config's)")
    parser.add_argument("--densities", default="0.2,0.5,0.9", help="shares of weights that are stored")
    parser.add_argument("--layers", default="1,2,4,6", help="blocks in a trail")
    parser.add_argument("--joints", default="", help="weights of the ensemble's own loss (default: the config's)")
    parser.add_argument("--points", default="", help="only these, as density:layers[:joint], with commas between")
    parser.add_argument("--launcher", default="", help='what trains: "deepspeed --num_gpus 2" (default: one rank)')
    parser.add_argument("--no_train", action="store_true", help="show only what has been trained")
    arguments, rest = parser.parse_known_args()
    check_folder(arguments.out)
    base, _, overrides = parse_command_line(rest)
    points = parse_points(arguments.densities, arguments.layers, arguments.joints, arguments.points)
    runs = plan_sweep(points, base, arguments.out, arguments.steps, overrides)

    from nt_dist.evaluation.evaluate_checkpoint import join
    from nt_dist.messages import start_logging
    from nt_dist.study.results import RESULTS, result_of  # takes seconds: torch and matplotlib
    from nt_dist.study.tables import diversity_study
    from nt_dist.study.training import is_done, train_missing

    start_logging(0)
    if not arguments.no_train:
        train_missing(runs.values(), arguments.launcher)
    done = [point for point in points if is_done(runs[point.name])]
    if not done:
        raise RunError(f"{arguments.out}: none of its points has been trained")
    mesh, kept = join(1), arguments.out / RESULTS
    study = diversity_study(
        {point: result_of(point.name, [runs[point.name].dir], mesh, kept, overrides) for point in done}
    )
    study.write(arguments.out)
    print(study.markdown())
    print(f"written: {arguments.out / study.name}.md and .csv, pictures beside them")
    return 0


if __name__ == "__main__":
    run_main(main)
