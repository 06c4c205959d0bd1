"""The diversity study: how differently trails predict, and what their ensemble gains, over density and trail length.

The NeuroTrails paper (arXiv 2505.17909) speaks of a "Goldilocks zone": trails that are alike gain nothing by being
averaged, and those that share too little of the trunk, or have too few weights, are worse each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nt_dist.pictures.runs import StudyPoint, against_diversity
from nt_dist.study.results import Result
from nt_dist.study.sweep import Place
from nt_dist.study.table import listed, markdown, write_study

TABLE = "diversity"
GAIN = "gain of the ensemble (nats a token)"
MEASURES = {  # and their columns
    "disagreement": "disagreement",
    "JS divergence (nats)": "js",
    "mutual information (nats)": "mutual_information",
}


@dataclass(frozen=True)
class Study:
    """The results of the points that have been trained."""

    results: Sequence[tuple[Place, Result]]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The figures of each point, with every digit."""
        for place, result in self.results:
            figures = result.figures
            topology = figures["topology"] or {}  # None where all is dense
            trails, ensemble = figures["nll"]["trails"], figures["nll"]["prob"]
            yield {
                "density": place.density,
                "layers": place.layers,
                "weights_stored": result.weights,
                "steps": result.steps,
                "tokens_evaluated": figures["tokens"],
                **result.family_figures,
                "gain": sum(trails) / len(trails) - ensemble,
                "js": figures["diversity"]["js_mean"],
                "kl": figures["diversity"]["kl_mean"],
                "mutual_information": figures["diversity"]["mutual_information"],
                "overlap": topology.get("overlap"),
                "overlap_chance": topology.get("overlap_chance"),
            }

    def markdown(self) -> str:
        """The table."""
        rows = []
        for row, (_, result) in zip(self.rows(), self.results, strict=True):
            headline = result.headline
            overlap = "–" if row["overlap"] is None else f"{row['overlap']:.3f} ({row['overlap_chance']:.3f})"
            rows.append(
                {
                    "density": f"{row['density']:g}",
                    "blocks in a trail": str(row["layers"]),
                    "weights stored": f"{row['weights_stored']:,}",
                    "mean of the trails": headline.text(headline.mean),
                    "ensemble, mean of probabilities": headline.text(headline.prob),
                    "gain (nats)": f"{row['gain']:.4f}",
                    "disagreement": f"{row['disagreement']:.1%}",
                    "JS divergence": f"{row['js']:.4f}",
                    "mutual information": f"{row['mutual_information']:.4f}",
                    "overlap (by chance)": overlap,
                }
            )
        steps = listed({result.steps for _, result in self.results})
        samples = f"{listed({result.figures['tokens'] for _, result in self.results})} {headline.samples}"
        note = f"{steps} steps; validation {headline.name} over {samples}; gain: mean of the trails' negative "
        return f"{markdown(rows)}\n\n{note}log-likelihoods less that of the mean of probabilities.\n"

    def pictures(self) -> dict[str, Figure]:
        """What is drawn, by file name."""
        rows = [
            {**row, "headline": each.headline.prob} for row, (_, each) in zip(self.rows(), self.results, strict=True)
        ]
        name = self.results[0][1].headline.name

        def against(outcome: str, label: str) -> Figure:
            panels = {
                measure: [StudyPoint(row["density"], row["layers"], row[key], row[outcome]) for row in rows]
                for measure, key in MEASURES.items()
            }
            return against_diversity(panels, label)

        return {
            "gain_against_diversity": against("gain", GAIN),
            f"{name.replace(' ', '_')}_against_diversity": against("headline", f"{name} of the ensemble"),
        }

    def write(self, folder: Path) -> None:
        """Write the table as Markdown and CSV and the pictures as PNG and SVG.

        Raises:
            RunError: Something cannot be written.
        """
        write_study(folder, TABLE, self.markdown(), list(self.rows()), self.pictures())
