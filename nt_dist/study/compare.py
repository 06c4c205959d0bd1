"""Runs beside one another: one table, and the headline figure against what a run costs."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nt_dist.errors import RunError
from nt_dist.pictures.runs import Point, headline_against, short
from nt_dist.study.results import RESULTS, Result, read_result
from nt_dist.study.table import StudyTable, listed

TABLE = "comparison"
_OF_SEVERAL = ("ensemble, mean of probabilities", "ensemble, mean of logits", "gain", "disagreement")
_OF_SEVERAL += ("JS divergence", "mutual information")  # columns that say nothing of one trail


def compare(results: Sequence[Result]) -> StudyTable:
    """Put results beside one another, in their order."""
    headline = results[0].headline
    evaluated = {result.num_samples for result in results}
    notes = [
        f"FLOP of one {headline.sample}, sparse-effective (dense-equivalent); calibration and Brier score of the mean "
        "of probabilities; divergence and mutual information in nats; gain: the ensemble's headline figure against the "
        "mean of its trails'.",
        f"Evaluated on {listed(evaluated)} {headline.samples}.",
    ]
    others = [result.name for result in results if result.data_digest != results[0].data_digest]
    if others or len(evaluated) > 1:
        rows = f" ({', '.join(others)})" if others else ""
        notes.append(f"Not all rows are of the same texts{rows}: their figures cannot be compared.")
    flops = f"FLOP a {headline.sample}, sparse-effective"
    panels = {
        "parameters": {"weights stored": "weights_stored"},
        "flops": {f"training {flops}": "training_flops_sparse", f"inference {flops}": "inference_flops_sparse"},
    }
    figures = {
        f"{headline.name.replace(' ', '_')}_against_{name}": headline_against(
            {
                label: [Point(each.name, getattr(each, cost), each.headline) for each in results]
                for label, cost in costs.items()
            }
        )
        for name, costs in panels.items()
    }
    return StudyTable(TABLE, [_cells(each) for each in results], [each.row() for each in results], notes, figures)


def _cells(result: Result) -> dict[str, str]:
    figures, headline = result.figures, result.headline
    calibration, diversity = figures["calibration"], figures["diversity"]
    cells = {
        "": result.name,
        "trails": str(result.trails),
        "weights stored": f"{short(result.weights_stored)} of {short(result.weights_dense)}",
        "training FLOP": f"{short(result.training_flops_sparse)} ({short(result.training_flops_dense)})",
        "inference FLOP": f"{short(result.inference_flops_sparse)} ({short(result.inference_flops_dense)})",
        f"{headline.samples} seen": short(result.tokens_seen),
        f"{headline.name} of each trail": ", ".join(map(headline.text, headline.trails)),
        "ensemble, mean of probabilities": headline.text(headline.prob),
        "ensemble, mean of logits": headline.text(headline.logit),
        "gain": f"{headline.prob / headline.mean - 1:+.1%}",
        "ECE": f"{calibration['ece']['prob']:.2%}",
        "adaptive ECE": f"{calibration['adaptive_ece']['prob']:.2%}",
        "Brier": f"{calibration['brier']['prob']:.4f}",
        "disagreement": f"{figures['disagreement']:.1%}",
        "JS divergence": f"{diversity['js_mean']:.4f}",
        "mutual information": f"{diversity['mutual_information']:.4f}",
    }
    return cells if result.trails > 1 else cells | dict.fromkeys(_OF_SEVERAL, "–")


def read_comparison(folder: Path) -> StudyTable:
    """Read a comparison that was written into ``folder``.

    Raises:
        RunError: There is none, or it is damaged.
    """
    try:
        rows = csv.DictReader((folder / f"{TABLE}.csv").read_text(encoding="utf-8").splitlines())
        return compare([read_result(folder / RESULTS / f"{row['name']}.json") for row in rows])
    except (OSError, KeyError, csv.Error) as problem:
        raise RunError(f"{folder}: holds no comparison that can be read: {problem}") from None


def parse_together(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Read ``NAME=RUN,RUN,…`` each: runs to evaluate together.

    Raises:
        RunError: One is not of that form, or a name stands there twice.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        folders = [Path(each) for each in rest.split(",") if each]
        if not name or len(folders) < 2 or name in found:
            raise RunError(f"--together {text}: must be NAME=RUN,RUN with a new name and two runs or more")
        found[name] = folders
    return found


def named(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Name runs by their folders' last parts, with the part before where two are alike.

    Raises:
        RunError: A folder stands there twice.
    """
    lasts = Counter(folder.resolve().name for folder in folders)
    found: dict[str, list[Path]] = {}
    for folder in folders:
        place = folder.resolve()
        name = place.name if lasts[place.name] == 1 else f"{place.parent.name}_{place.name}"
        if name in found:
            raise RunError(f"{found[name][0]}, {folder}: cannot be told apart by their names")
        found[name] = [folder]
    return found
