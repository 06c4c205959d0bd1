"""Runs beside one another: one table, and the headline figure against what a run costs."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nt_dist.config.family import Headline
from nt_dist.errors import RunError
from nt_dist.pictures.runs import Point, headline_against, short
from nt_dist.study.results import RESULTS, Result, read_result
from nt_dist.study.table import listed, markdown, write_study
from nt_dist.training.tensorboard import draw_pictures

TABLE = "comparison"
NOTE = (
    "FLOP of one token, sparse-effective (dense-equivalent); calibration and Brier score of the mean of probabilities; "
    "divergence and mutual information in nats; gain: the ensemble's headline figure against the mean of its trails'."
)


@dataclass(frozen=True)
class Comparison:
    """Results in the order of the table."""

    results: Sequence[Result]

    def markdown(self) -> str:
        """The table, with notes about what it rests on."""
        return "\n\n".join([markdown(self.cells()), *self.notes()]) + "\n"

    def cells(self) -> list[dict[str, str]]:
        """The rows as people read them, by heading."""
        return [_cells(result) for result in self.results]

    def rows(self) -> list[dict[str, Any]]:
        """The rows with every digit."""
        return [_columns(result) for result in self.results]

    def notes(self) -> list[str]:
        """What the table means and rests on."""
        evaluated = {result.figures["tokens"] for result in self.results}
        notes = [NOTE, f"Evaluated on {listed(evaluated)} {self._headline.samples}."]
        others = [result.name for result in self.results if result.data_digest != self.results[0].data_digest]
        if others or len(evaluated) > 1:
            rows = f" ({', '.join(others)})" if others else ""
            notes.append(f"Not all rows are of the same texts{rows}: their figures cannot be compared.")
        return notes

    def pictures(self) -> dict[str, Figure]:
        """What is drawn, by file name."""

        def panel(label: str, cost: str) -> tuple[str, list[Point]]:
            return label, [Point(each.name, getattr(each, cost), each.headline) for each in self.results]

        flops = "FLOP a token, sparse-effective"
        panels = {
            "parameters": [panel("weights stored", "weights")],
            "flops": [panel(f"training {flops}", "training_flops"), panel(f"inference {flops}", "inference_flops")],
        }
        name = self._headline.name.replace(" ", "_")
        return {f"{name}_against_{cost}": headline_against(each) for cost, each in panels.items()}

    @property
    def _headline(self) -> Headline:
        return self.results[0].headline

    @classmethod
    def read(cls, folder: Path) -> "Comparison":
        """Read a comparison that was written into ``folder``.

        Raises:
            RunError: There is none, or it is damaged.
        """
        try:
            rows = csv.DictReader((folder / f"{TABLE}.csv").read_text(encoding="utf-8").splitlines())
            return cls([read_result(folder / RESULTS / f"{row['name']}.json") for row in rows])
        except (OSError, KeyError, csv.Error) as problem:
            raise RunError(f"{folder}: holds no comparison that can be read: {problem}") from None

    def write(self, folder: Path) -> None:
        """Write the table as Markdown and CSV, the pictures as PNG and SVG, and for TensorBoard.

        Raises:
            RunError: Something cannot be written.
        """
        pictures = write_study(folder, TABLE, self.markdown(), self.rows(), self.pictures())
        pixels = {name: picture.png for name, picture in pictures.items()}
        draw_pictures(folder / "tensorboard", pixels, max(each.steps for each in self.results))


def _cells(result: Result) -> dict[str, str]:
    figures, headline = result.figures, result.headline
    calibration, diversity = figures["calibration"], figures["diversity"]

    def when(text: str) -> str:
        return text if result.num_trails > 1 else "–"

    return {
        "": result.name,
        "trails": str(result.num_trails),
        "weights stored": f"{short(result.weights)} of {short(result.dense_weights)}",
        "training FLOP": f"{short(result.training_flops)} ({short(result.training_flops_dense)})",
        "inference FLOP": f"{short(result.inference_flops)} ({short(result.inference_flops_dense)})",
        "tokens seen": short(result.tokens),
        f"{headline.name} of each trail": ", ".join(map(headline.text, headline.trails)),
        "ensemble, mean of probabilities": when(headline.text(headline.prob)),
        "ensemble, mean of logits": when(headline.text(headline.logit)),
        "gain": when(f"{headline.prob / headline.mean - 1:+.1%}"),
        "ECE": f"{calibration['ece']['prob']:.2%}",
        "adaptive ECE": f"{calibration['adaptive_ece']['prob']:.2%}",
        "Brier": f"{calibration['brier']['prob']:.4f}",
        "disagreement": when(f"{figures['disagreement']:.1%}"),
        "JS divergence": when(f"{diversity['js_mean']:.4f}"),
        "mutual information": when(f"{diversity['mutual_information']:.4f}"),
    }


def _columns(result: Result) -> dict[str, Any]:
    figures = result.figures
    temperature = figures["calibration"]["temperature"]
    return {
        "name": result.name,
        "trails": result.num_trails,
        "weights_stored": result.weights,
        "weights_dense": result.dense_weights,
        "training_flops_sparse": result.training_flops,
        "training_flops_dense": result.training_flops_dense,
        "inference_flops_sparse": result.inference_flops,
        "inference_flops_dense": result.inference_flops_dense,
        "steps": result.steps,
        "tokens_seen": result.tokens,
        "tokens_evaluated": figures["tokens"],
        **result.family_figures,
        **{name: figures["calibration"][name]["prob"] for name in ("ece", "adaptive_ece", "brier")},
        "temperature": temperature["value"]["prob"],
        "ece_after_temperature": temperature["after"]["ece"]["prob"],
        **{name: figures["diversity"][name] for name in ("kl_mean", "js_mean", "entropy_mean", "mutual_information")},
        "checkpoints": result.checkpoints,
    }


def parse_together(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Read ``NAME=RUN,RUN,…`` each: runs to evaluate together.

    Raises:
        RunError: One is not of that form, or a name stands there twice.
    """
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        folders = [Path(each) for each in rest.split(",") if each]
        if not name or not equals or len(folders) < 2 or name in found:
            raise RunError(f"--together {text}: must be NAME=RUN,RUN with a new name and two runs or more")
        found[name] = folders
    return found


def named(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Name runs by their folders' last parts, with the part before where two are alike.

    Raises:
        RunError: A folder stands there twice.
    """
    lasts = [folder.resolve().name for folder in folders]
    names = [
        last if lasts.count(last) == 1 else f"{folder.resolve().parent.name}_{last}"
        for folder, last in zip(folders, lasts, strict=True)
    ]
    twice = [str(folder) for folder, name in zip(folders, names, strict=True) if names.count(name) > 1]
    if twice:
        raise RunError(f"{', '.join(twice)}: cannot be told apart by their names")
    return {name: [folder] for name, folder in zip(names, folders, strict=True)}
