"""Compares runs: what each costs and how well it predicts, as one table (Markdown, CSV) and pictures (PNG, SVG).

    python tools/compare.py configs/baselines/bench_mini.toml [--only NAME,NAME] [--equal flops] [section.key=value …]
    python tools/compare.py runs/first runs/second [--together deep=runs/first,runs/second] --out comparison

A plan (a TOML file, see nt_dist/study/plan.py) names the runs, and those that are missing are trained first, one after
the other; started again, it goes on where it was. Settings then hold for all runs. A plan may have several seeds, and
values of settings to try for each model: its best is compared. --equal gives each run so many steps that it costs what
the plan's first (or --reference) does.

Of folders of runs the newest checkpoints are read; settings then are those of the evaluation, as in run.eval_batches=0
for all validation texts. --together evaluates runs as one ensemble of all their trails (a deep ensemble).
"""

import argparse
from itertools import chain
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.errors import RunError
from nt_dist.files import check_folder
from nt_dist.study.plan import name_runs, parse_together, read_plan


def main() -> int:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="PLAN.toml | RUN | section.key=value")
    parser.add_argument("--out", type=Path, help="folder for table and pictures (default: the plan's)")
    parser.add_argument("--only", help="of a plan: these runs and ensembles, with commas between")
    parser.add_argument("--equal", choices=["tokens", "flops", "time"], help="of a plan: what rows cost alike")
    parser.add_argument("--reference", help="for --equal: the run that costs as much as the others shall")
    parser.add_argument("--launcher", default="", help='what trains: "deepspeed --num_gpus 2" (default: one rank)')
    parser.add_argument("--no_train", action="store_true", help="compare only what has been trained")
    parser.add_argument("--together", action="append", default=[], metavar="NAME=RUN,RUN", help="runs as one ensemble")
    arguments = parser.parse_intermixed_args()
    overrides = [word for word in arguments.what if "=" in word]
    named = [Path(word) for word in arguments.what if "=" not in word]
    plans = [path for path in named if path.suffix == ".toml"]
    if plans and (len(named) > 1 or arguments.together):
        raise RunError(f"{plans[0]}: a plan stands alone: it names its runs and ensembles itself")
    if not (plans or (arguments.out and (named or arguments.together))):
        raise RunError("give a plan, or folders of runs and --out FOLDER")
    plan = read_plan(plans[0], overrides, arguments.only.split(",") if arguments.only else ()) if plans else None
    if (arguments.equal and not plan) or (arguments.reference and not arguments.equal):
        raise RunError("--equal is for a plan, whose runs are trained, and --reference for --equal")
    out = arguments.out or plan.dir
    check_folder(out)
    if arguments.equal:
        referred = read_plan(plans[0], overrides, [arguments.reference] if arguments.reference else ())
        reference = next(iter(referred.models.values()))

    from nt_dist.evaluation.evaluate_checkpoint import join
    from nt_dist.messages import start_logging
    from nt_dist.study.equal import equalized
    from nt_dist.study.results import RESULTS, Result, newest_checkpoint, result_of  # takes seconds: torch
    from nt_dist.study.tables import Row, compare, plan_rows
    from nt_dist.study.training import train_missing, train_plan
    from nt_dist.training.reporter import TENSORBOARD
    from nt_dist.training.tensorboard import draw_pictures

    start_logging(0)
    if plan and arguments.equal:
        train = None if arguments.no_train else lambda run: train_missing([run], arguments.launcher)
        plan = equalized(plan, arguments.equal, reference, train)
    if plan and not arguments.no_train:
        train_plan(plan, arguments.launcher)
    mesh = join(1)

    def evaluate(name: str, folders: list[Path]) -> Result:
        return result_of(name, folders, mesh, out / RESULTS, overrides)

    if plan:
        rows = plan_rows(plan, evaluate)
    else:
        folders = name_runs(named) | parse_together(arguments.together)
        for each in dict.fromkeys(chain(*folders.values())):
            newest_checkpoint(each)  # all of them before anything is evaluated
        rows = [Row(name, [evaluate(name, paths)]) for name, paths in folders.items()]
    if not rows:
        raise RunError(f"{plans[0]}: none of its runs has been trained")
    comparison = compare(rows, arguments.equal or "")
    pixels = {name: picture.png for name, picture in comparison.write(out).items()}
    draw_pictures(
        out / TENSORBOARD / out.resolve().name, pixels, max(each.steps for row in rows for each in row.results)
    )
    print(comparison.markdown())
    print(f"written: {out / comparison.name}.md and .csv, pictures beside them")
    return 0


if __name__ == "__main__":
    run_main(main)
