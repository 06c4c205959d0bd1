"""The diversity study: how differently trails predict, and what their ensemble gains, over density and trail length.

The NeuroTrails paper (arXiv 2505.17909) speaks of a "Goldilocks zone": trails that are alike gain nothing by being
averaged, and those that share too little of the trunk, or have too few weights, are worse each.
"""

from collections.abc import Mapping

from nt_dist.pictures.runs import StudyPoint, against_diversity
from nt_dist.study.results import Result
from nt_dist.study.sweep import SweepPoint
from nt_dist.study.table import StudyTable, listed

TABLE = "diversity"
MEASURES = {  # and their columns
    "disagreement": "disagreement",
    "JS divergence (nats)": "js_mean",
    "mutual information (nats)": "mutual_information",
}


def diversity_study(results: Mapping[SweepPoint, Result]) -> StudyTable:
    """Put the points that have been trained beside one another."""
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
            else f"{row['overlap']:.3f} ({row['overlap_chance']:.3f})",
        }
        for row, headline in zip(rows, headlines, strict=True)
    ]
    outcomes = {
        "gain": (f"gain of the ensemble (nats a {first.sample})", [row["gain"] for row in rows]),
        first.name: (f"{first.name} of the ensemble", [headline.prob for headline in headlines]),
    }
    figures = {}
    for name, (label, values) in outcomes.items():
        points = list(zip(results, rows, values, strict=True))
        measures = {
            measure: [StudyPoint(*at, row[column], value) for at, row, value in points]
            for measure, column in MEASURES.items()
        }
        figures[f"{name.replace(' ', '_')}_against_diversity"] = against_diversity(measures, label)
    return StudyTable(TABLE, cells, rows, [note], figures)
