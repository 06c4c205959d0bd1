"""The diversity study: how differently trails predict, and what their ensemble gains, over density and trail length.

The NeuroTrails paper (arXiv 2505.17909) speaks of a "Goldilocks zone": trails that are alike gain nothing by being
averaged, and those that share too little of the trunk, or have too few weights, are worse each.
"""

from collections.abc import Mapping
from typing import Any

from nt_dist.pictures.runs import StudyPoint, against_diversity
from nt_dist.study.results import Result
from nt_dist.study.sweep import SweepPoint
from nt_dist.study.table import StudyTable, listed

TABLE = "diversity"
MEASURES = {  # and their columns
    "disagreement": "disagreement",
    "JS divergence (nats)": "js",
    "mutual information (nats)": "mutual_information",
}


def diversity_study(results: Mapping[SweepPoint, Result]) -> StudyTable:
    """Put the points that have been trained beside one another."""
    rows = [_row(point, result) for point, result in results.items()]
    cells = [_cells(row, result) for row, result in zip(rows, results.values(), strict=True)]
    headline = next(iter(results.values())).headline
    steps = listed({result.steps for result in results.values()})
    samples = listed({result.num_samples for result in results.values()})
    note = (
        f"{steps} steps; validation {headline.name} over {samples} {headline.samples}; gain: mean of the trails' "
        "negative log-likelihoods less that of the mean of probabilities."
    )
    outcomes = {
        "gain": (f"gain of the ensemble (nats a {headline.sample})", [row["gain"] for row in rows]),
        headline.name: (f"{headline.name} of the ensemble", [each.headline.prob for each in results.values()]),
    }
    figures = {}
    for name, (label, values) in outcomes.items():
        measures = {
            measure: [
                StudyPoint(row["density"], row["layers"], row[column], value)
                for row, value in zip(rows, values, strict=True)
            ]
            for measure, column in MEASURES.items()
        }
        figures[f"{name.replace(' ', '_')}_against_diversity"] = against_diversity(measures, label)
    return StudyTable(TABLE, cells, rows, [note], figures)


def _row(point: SweepPoint, result: Result) -> dict[str, Any]:
    figures = result.figures
    topology = figures["topology"] or {}  # None where all is dense
    trails, ensemble = figures["nll"]["trails"], figures["nll"]["prob"]
    return {
        "density": point.density,
        "layers": point.layers,
        "weights_stored": result.weights_stored,
        "steps": result.steps,
        f"{result.headline.samples}_evaluated": result.num_samples,
        **result.family_figures,
        "gain": sum(trails) / len(trails) - ensemble,
        "js": figures["diversity"]["js_mean"],
        "kl": figures["diversity"]["kl_mean"],
        "mutual_information": figures["diversity"]["mutual_information"],
        "overlap": topology.get("overlap"),
        "overlap_chance": topology.get("overlap_chance"),
    }


def _cells(row: Mapping[str, Any], result: Result) -> dict[str, str]:
    headline = result.headline
    return {
        "density": f"{row['density']:g}",
        "blocks in a trail": str(row["layers"]),
        "weights stored": f"{row['weights_stored']:,}",
        "mean of the trails": headline.text(headline.mean),
        "ensemble, mean of probabilities": headline.text(headline.prob),
        "gain (nats)": f"{row['gain']:.4f}",
        "disagreement": f"{row['disagreement']:.1%}",
        "JS divergence": f"{row['js']:.4f}",
        "mutual information": f"{row['mutual_information']:.4f}",
        "overlap (by chance)": "–" if row["overlap"] is None else f"{row['overlap']:.3f} ({row['overlap_chance']:.3f})",
    }
