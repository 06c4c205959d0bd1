"""The diversity study: how differently trails predict, and what their ensemble gains, over density and trail length.

The NeuroTrails paper (arXiv 2505.17909) speaks of a "Goldilocks zone": trails that are alike gain nothing by being
averaged, and those that share too little of the trunk, or have too few weights, are worse each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nt_dist.files import write_whole
from nt_dist.pictures.runs import StudyPoint, against_diversity
from nt_dist.pictures.style import drawn, save_pictures
from nt_dist.study.results import Result
from nt_dist.study.sweep import Place
from nt_dist.study.table import comma_separated, markdown

TABLE = "diversity"
GAIN = "gain of the ensemble (nats a token)"
MEASURES = ("disagreement", "JS divergence (nats)", "mutual information (nats)")


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
                "ppl_trails": figures["ppl_trails"],
                "ppl_ensemble_prob": figures["ppl_ensemble_prob"],
                "ppl_ensemble_logit": figures["ppl_ensemble_logit"],
                "gain": sum(trails) / len(trails) - ensemble,
                "disagreement": figures["disagreement"],
                "js": figures["diversity"]["js_mean"],
                "kl": figures["diversity"]["kl_mean"],
                "mutual_information": figures["diversity"]["mutual_information"],
                "overlap": topology.get("overlap"),
                "overlap_chance": topology.get("overlap_chance"),
            }

    def markdown(self) -> str:
        """The table."""
        rows = []
        for row in self.rows():
            mean = sum(row["ppl_trails"]) / len(row["ppl_trails"])
            overlap = "–" if row["overlap"] is None else f"{row['overlap']:.3f} ({row['overlap_chance']:.3f})"
            rows.append(
                {
                    "density": f"{row['density']:g}",
                    "blocks in a trail": str(row["layers"]),
                    "weights stored": f"{row['weights_stored']:,}",
                    "mean of the trails": f"{mean:.2f}",
                    "ensemble, mean of probabilities": f"{row['ppl_ensemble_prob']:.2f}",
                    "gain (nats)": f"{row['gain']:.4f}",
                    "disagreement": f"{row['disagreement']:.1%}",
                    "JS divergence": f"{row['js']:.4f}",
                    "mutual information": f"{row['mutual_information']:.4f}",
                    "overlap (by chance)": overlap,
                }
            )
        steps = {result.steps for _, result in self.results}
        tokens = {result.figures["tokens"] for _, result in self.results}
        note = (
            f"{_listed(steps)} steps; validation perplexity over {_listed(tokens)} tokens; gain: mean of the trails' "
        )
        note += "negative log-likelihoods less that of the mean of probabilities."
        return f"{markdown(rows)}\n\n{note}\n"

    def pictures(self) -> dict[str, Figure]:
        """What is drawn, by file name."""
        rows = list(self.rows())
        made = {}
        for name, key, label in (
            ("gain_against_diversity", "gain", GAIN),
            ("perplexity_against_diversity", "ppl_ensemble_prob", "perplexity of the ensemble"),
        ):
            panels = [
                (measure, [StudyPoint(row["density"], row["layers"], row[column], row[key]) for row in rows])
                for measure, column in zip(MEASURES, ("disagreement", "js", "mutual_information"), strict=True)
            ]
            made[name] = against_diversity(panels, label)
        return made

    def write(self, folder: Path) -> None:
        """Write the table as Markdown and CSV and the pictures as PNG and SVG.

        Raises:
            RunError: Something cannot be written.
        """
        write_whole(folder / f"{TABLE}.md", self.markdown())
        write_whole(folder / f"{TABLE}.csv", comma_separated(list(self.rows())))
        save_pictures({name: drawn(figure) for name, figure in self.pictures().items()}, folder)


def _listed(numbers: set[int]) -> str:
    return " / ".join(f"{number:,}" for number in sorted(numbers))
