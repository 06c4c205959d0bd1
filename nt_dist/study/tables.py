"""Runs beside one another as a table, Markdown and CSV, with its pictures: comparisons and the diversity study."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nt_dist.errors import RunError
from nt_dist.files import write_whole
from nt_dist.pictures import Drawn, against_diversity, drawn, headline_against, save_pictures, short
from nt_dist.study.plan import SweepPoint
from nt_dist.study.results import RESULTS, Result, read_result

_COMPARISON = "comparison"
_OF_SEVERAL = ("ensemble, mean of probabilities", "ensemble, mean of logits", "gain", "disagreement")
_OF_SEVERAL += ("JS divergence", "mutual information")  # columns that say nothing of one trail
_DIVERSITY = {  # its measures, and their columns
    "disagreement": "disagreement",
    "JS divergence (nats)": "js_mean",
    "mutual information (nats)": "mutual_information",
}


@dataclass(frozen=True)
class StudyTable:
    """The rows twice, and what goes with them; ``name`` is that of the files."""

    name: str
    cells: Sequence[Mapping[str, str]]  # as people read them, by heading
    rows: Sequence[Mapping[str, Any]]  # with every digit, by column
    notes: Sequence[str]
    figures: Mapping[str, Figure]  # by file name

    def markdown(self) -> str:
        """The table as a Markdown one, with the notes."""
        columns = list(self.cells[0])
        lines = [columns, ["---"] * len(columns), *(row.values() for row in self.cells)]
        return "\n\n".join(["\n".join(f"| {' | '.join(line)} |" for line in lines), *self.notes]) + "\n"

    def csv(self) -> str:
        """The rows as CSV; lists of numbers joined by spaces, nothing for None."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in row.items()})
        return buffer.getvalue()

    def write(self, folder: Path) -> dict[str, Drawn]:
        """Write NAME.md, NAME.csv and each figure as PNG and SVG; return the pictures. RunError where that fails."""
        write_whole(folder / f"{self.name}.md", self.markdown())
        write_whole(folder / f"{self.name}.csv", self.csv())
        pictures = {name: drawn(figure) for name, figure in self.figures.items()}
        save_pictures(pictures, folder)
        return pictures


def listed(numbers: set[int]) -> str:
    """Numbers in order, as "1,000 / 2,000"."""
    return " / ".join(f"{number:,}" for number in sorted(numbers))


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
        notes.append(f"Not all rows are of the same data{rows}: their figures cannot be compared.")
    notes += dict.fromkeys(sentence for result in results for sentence in result.published)
    flops = f"FLOP a {headline.sample}, sparse-effective"
    panels = {
        "parameters": {"weights stored": "weights_stored"},
        "flops": {f"training {flops}": "training_flops_sparse", f"inference {flops}": "inference_flops_sparse"},
    }
    headlines = {each.name: each.headline for each in results}
    figures = {}
    for name, costs in panels.items():
        values = {label: [getattr(each, cost) for each in results] for label, cost in costs.items()}
        figures[f"{headline.name.replace(' ', '_')}_against_{name}"] = headline_against(headlines, values)
    return StudyTable(_COMPARISON, [_cells(each) for each in results], [each.row() for each in results], notes, figures)


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
    """Read a comparison that was written into ``folder``; a RunError where there is none, or it is damaged."""
    try:
        rows = csv.DictReader((folder / f"{_COMPARISON}.csv").read_text(encoding="utf-8").splitlines())
        return compare([read_result(folder / RESULTS / f"{row['name']}.json") for row in rows])
    except (OSError, KeyError, csv.Error) as problem:
        raise RunError(f"{folder}: holds no comparison that can be read: {problem}") from None


def diversity_study(results: Mapping[SweepPoint, Result]) -> StudyTable:
    """Put points of a sweep beside one another: how differently trails predict, and what their ensemble gains.

    The NeuroTrails paper (arXiv 2505.17909) speaks of a "Goldilocks zone": trails that are alike gain nothing by being
    averaged, and those that share too little of the trunk, or have too few weights, are worse each.
    """
    rows = [{"density": at.density, "layers": at.layers, **result.row()} for at, result in results.items()]
    headlines = [result.headline for result in results.values()]
    first = headlines[0]
    steps = listed({result.steps for result in results.values()})
    samples = listed({result.num_samples for result in results.values()})
    note = (
        f"{steps} steps; validation {first.name} over {samples} {first.samples}; gain: mean of the trails' "
        "negative log-likelihoods less that of the mean of probabilities."
    )
    cells = [
        {
            "density": f"{row['density']:g}",
            "blocks in a trail": str(row["layers"]),
            "weights stored": f"{row['weights_stored']:,}",
            "mean of the trails": headline.text(headline.mean),
            "ensemble, mean of probabilities": headline.text(headline.prob),
            "gain (nats)": f"{row['gain']:.4f}",
            "disagreement": f"{row['disagreement']:.1%}",
            "JS divergence": f"{row['js_mean']:.4f}",
            "mutual information": f"{row['mutual_information']:.4f}",
            "overlap (by chance)": "–"
            if row["overlap"] is None
            else "{overlap:.3f} ({overlap_chance:.3f})".format(**row),
        }
        for row, headline in zip(rows, headlines, strict=True)
    ]
    outcomes = {
        "gain": (f"gain of the ensemble (nats a {first.sample})", [row["gain"] for row in rows]),
        first.name: (f"{first.name} of the ensemble", [headline.prob for headline in headlines]),
    }
    measures = {measure: [row[column] for row in rows] for measure, column in _DIVERSITY.items()}
    figures = {
        f"{name.replace(' ', '_')}_against_diversity": against_diversity(list(results), measures, values, label)
        for name, (label, values) in outcomes.items()
    }
    return StudyTable("diversity", cells, rows, [note], figures)
