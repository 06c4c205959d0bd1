"""Writes a report of a run: one HTML file that opens without a network, and its pictures as PNG and SVG.

    python tools/report.py runs/quickstart [--out FILE.html] [--comparison FOLDER] [section.key=value …]

The newest checkpoint is evaluated with all figures (kept in RUN/report, where the pictures are written as well);
settings are those of the evaluation, as in run.eval_batches=0 for all validation texts. The pictures also go to the
run's TensorBoard. --comparison, a folder that tools/compare.py has written, puts the run beside others.
"""

import argparse
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.errors import RunError
from nt_dist.files import check_file, write_whole


def main() -> int:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--out", type=Path, help="the file (default: RUN/report.html)")
    parser.add_argument("--comparison", type=Path, help="folder that tools/compare.py has written")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="over the run's settings")
    arguments = parser.parse_intermixed_args()
    run = arguments.run
    if not run.is_dir():
        raise RunError(f"{run}: no such folder")
    out = arguments.out or run / "report.html"
    check_file("--out", out)

    from nt_dist.evaluation.evaluate_checkpoint import join
    from nt_dist.messages import start_logging
    from nt_dist.pictures import save_pictures  # takes seconds: torch and matplotlib
    from nt_dist.study.report import make_report
    from nt_dist.study.results import result_of
    from nt_dist.study.tables import read_comparison
    from nt_dist.training.reporter import TENSORBOARD
    from nt_dist.training.tensorboard import curves_folder, draw_pictures

    start_logging(0)
    comparison = read_comparison(arguments.comparison) if arguments.comparison else None
    result = result_of(run.resolve().name, [run], join(1), run / "report", arguments.overrides)
    page, pictures = make_report(run, result, comparison)
    write_whole(out, page)
    save_pictures(pictures, run / "report")
    draw_pictures(
        curves_folder(run, run / TENSORBOARD), {name: picture.png for name, picture in pictures.items()}, result.steps
    )
    print(f"written: {out}; {len(pictures)} pictures in {run / 'report'}")
    return 0


if __name__ == "__main__":
    run_main(main)
