"""Runs beside one another as a table, Markdown and CSV, with its pictures: comparisons and the diversity study."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from matplotlib.figure import Figure

from nt_dist.config.family import Headline
from nt_dist.errors import RunError
from nt_dist.files import write_whole
from nt_dist.messages import format_seconds
from nt_dist.pictures import Drawn, against_diversity, drawn, headline_against, save_pictures, short
from nt_dist.study.equal import EQUAL
from nt_dist.study.plan import Plan, SweepPoint
from nt_dist.study.results import RESULTS, Result, read_result
from nt_dist.study.seeds import least_difference, pooled
from nt_dist.study.training import trained

_COMPARISON = "comparison"
_ALIKE = 0.1  # by which costs may differ that are called equal, as times do
_OF_SEVERAL = ("ensemble, mean of probabilities", "ensemble, mean of logits", "gain (nats)", "disagreement")
_OF_SEVERAL += (
    "over the best trail (nats)",
    "JS divergence",
    "mutual information",
)  # columns that say nothing of one trail
_DIVERSITY = {  # its measures, and their columns
    "disagreement": "disagreement",
    "JS divergence (nats)": "js_mean",
    "mutual information (nats)": "mutual_information",
}


@dataclass(frozen=True)
class Row:
    """One of a comparison: a model, with a result for each seed, and what was tried for it, in words."""

    name: str
    results: Sequence[Result]
    tried: str = ""

    @property
    def headline(self) -> Headline:
        """Its mean over the seeds."""
        each = [result.headline for result in self.results]
        trails = [fmean(trail) for trail in zip(*(one.trails for one in each), strict=True)]
        means = {name: fmean(getattr(one, name) for one in each) for name in ("prob", "logit", "gain")}
        return replace(each[0], trails=trails, **means)


def plan_rows(plan: Plan, evaluate: Callable[[str, list[Path]], Result]) -> list[Row]:
    """Return a row for each model and ensemble of a plan of which something has been trained.

    ``evaluate`` is given a result's name and the folders of its runs. An ensemble has a member's first seed, then its
    second, for as long as all members have one.
    """
    found = {name: each for name, model in plan.models.items() if (each := trained(model)).runs}
    rows = []
    for name, each in found.items():
        tried = [
            f"{what}: {headline.text(headline.prob)}{' (taken)' * (what == each.best)}"
            for what, headline in each.tried.items()
        ]
        rows.append(Row(name, [evaluate(run.name, [run.dir]) for run in each.runs], "; ".join(tried)))
    for name, members in plan.ensembles.items():
        if all(member in found for member in members):
            times = enumerate(zip(*(found[member].runs for member in members), strict=False))
            results = [evaluate(f"{name}_{k + 1}" if k else name, [run.dir for run in runs]) for k, runs in times]
            rows.append(Row(name, results))
    return rows


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


def compare(rows: Sequence[Row], equal: str = "") -> StudyTable:
    """Put models beside one another, in their order; ``equal`` is that of EQUAL in which they cost the same."""
    results = [result for row in rows for result in row.results]
    headline = results[0].headline
    evaluated = {result.num_samples for result in results}
    notes = [
        f"FLOP of one {headline.sample}, sparse-effective (dense-equivalent); calibration and Brier score of the mean "
        "of probabilities; divergence and mutual information in nats; gain: mean of the trails' negative log-"
        "likelihoods less that of the mean of probabilities, and that of the best trail (of runs taken together also "
        "of the best member, the run that is named, by the mean of its own trails' probabilities) less it; time: of "
        "training steps alone, by the clock.",
        f"Evaluated on {listed(evaluated)} {headline.samples}.",
        _trained_on(rows, equal),
    ]
    others = [row.name for row in rows if any(each.data_digest != results[0].data_digest for each in row.results)]
    if others or len(evaluated) > 1:
        names = f" ({', '.join(others)})" if others else ""
        notes.append(f"Not all rows are of the same data{names}: their figures cannot be compared.")
    if any(row.tried for row in rows):
        notes.append(
            f"Tried: settings with the first seed, and the {headline.name} of the mean of probabilities in each run's "
            "own last evaluation; the best was taken, and trained with the other seeds."
        )
    spread, degrees = pooled([[result.headline.prob for result in row.results] for row in rows])
    if degrees:
        notes.append(_rule(headline, spread, degrees))
    notes += dict.fromkeys(sentence for result in results for sentence in result.published)
    flops = f"FLOP a {headline.sample}, sparse-effective"
    panels = {
        "parameters": {"weights stored": "weights_stored"},
        "flops": {f"training {flops}": "training_flops_sparse", f"inference {flops}": "inference_flops_sparse"},
    }
    headlines = {row.name: row.headline for row in rows}
    figures = {}
    for name, costs in panels.items():
        values = {label: [getattr(row.results[0], cost) for row in rows] for label, cost in costs.items()}
        figures[f"{headline.name.replace(' ', '_')}_against_{name}"] = headline_against(headlines, values)
    names = dict.fromkeys(name for result in results for name in result.by_source)
    has_members = any(result.best_member for result in results)
    cells = [_cells(row, names, has_members) for row in rows]
    if degrees:
        cells = [each | behind for each, behind in zip(cells, _behind(rows, spread, degrees), strict=True)]
    if any(row.tried for row in rows):
        cells = [each | {"tried": row.tried or "–"} for each, row in zip(cells, rows, strict=True)]
    said = [{"model": row.name, "tried": row.tried, "equal": equal} for row in rows for _ in row.results]
    every = [result.row() | more for result, more in zip(results, said, strict=True)]
    return StudyTable(_COMPARISON, cells, every, notes, figures)


def _trained_on(rows: Sequence[Row], equal: str) -> str:
    """Whether rows cost the same, and in what: as it was asked for, or as it has come."""
    if equal:
        cost = {"tokens": "tokens_seen", "flops": "training_flops", "time": "training_seconds"}[equal]
        costs = {row.name: fmean(getattr(result, cost) for result in row.results) for row in rows}
        middle = median(costs.values())
        others = [name for name, each in costs.items() if abs(each - middle) > _ALIKE * middle]
        return f"Trained on equal {EQUAL[equal]}{', but for ' * bool(others)}{', '.join(others)}."
    tokens = {result.tokens_seen for row in rows for result in row.results}
    if len(tokens) == 1:
        return f"Trained on equal tokens, {listed(tokens)}."
    return f"Not trained on equal tokens, but on {listed(tokens)}."


def _rule(headline: Headline, spread: float, degrees: int) -> str:
    least = {size: headline.text(least_difference(spread, degrees, (size, size))) for size in (1, 2, 3)}
    return (
        "±: standard deviation over seeds. The difference of two rows, of n and m seeds, counts from t s √(1/n + 1/m) "
        f"on: with one seed each from {least[1]}, two {least[2]}, three {least[3]}. s = {headline.text(spread)} is the "
        f"standard deviation over seeds of the {headline.name} of the mean of probabilities, pooled over all rows, and "
        f"t the 97.5 % point of Student's distribution with its {degrees} degrees of freedom. Of many pairs, one in "
        "twenty counts by chance."
    )


def _behind(rows: Sequence[Row], spread: float, degrees: int) -> list[dict[str, str]]:
    """By how much each row is worse than the best, by the mean of probabilities, and whether that counts."""
    best = min(rows, key=lambda row: row.headline.prob * (1 if row.headline.lower_is_better else -1))
    cells = []
    for row in rows:
        least = least_difference(spread, degrees, (len(row.results), len(best.results)))
        by = abs(row.headline.prob - best.headline.prob)
        words = f"{row.headline.text(by)}, {'counts' if by >= least else 'does not count'}"
        cells.append({"behind the best": "–" if row is best else words})
    return cells


def _cells(row: Row, sources: Iterable[str] = (), has_members: bool = False) -> dict[str, str]:
    first, headline = row.results[0], row.headline

    def mean(text: Callable[[float], str], value: Callable[[Result], float]) -> str:
        """Over the seeds, with its spread."""
        values = [value(result) for result in row.results]
        spread = f" ± {text(stdev(values)).lstrip('+')}" if len(values) > 1 else ""
        return text(fmean(values)) + spread

    seconds = [result.training_seconds for result in row.results]
    cells = {
        "": row.name,
        "trails": str(first.trails),
        "weights stored": f"{short(first.weights_stored)} of {short(first.weights_dense)}",
        "training FLOP": f"{short(first.training_flops_sparse)} ({short(first.training_flops_dense)})",
        "inference FLOP": f"{short(first.inference_flops_sparse)} ({short(first.inference_flops_dense)})",
        f"{headline.samples} seen": short(first.tokens_seen),
        "whole training FLOP": short(first.training_flops),
        "time": format_seconds(fmean(seconds)) if all(seconds) else "–",
        "seeds": str(len(row.results)),
        f"{headline.name} of each trail": ", ".join(map(headline.text, headline.trails)),
        "ensemble, mean of probabilities": mean(headline.text, lambda each: each.headline.prob),
        "ensemble, mean of logits": mean(headline.text, lambda each: each.headline.logit),
        "gain (nats)": mean("{:.4f}".format, lambda each: each.headline.gain),
        "over the best trail (nats)": mean("{:.4f}".format, lambda each: each.gain_over_best),
        **({"over the best member (nats)": "–"} if has_members else {}),
        "ECE": mean("{:.2%}".format, lambda each: each.figures["calibration"]["ece"]["prob"]),
        "adaptive ECE": mean("{:.2%}".format, lambda each: each.figures["calibration"]["adaptive_ece"]["prob"]),
        "Brier": mean("{:.4f}".format, lambda each: each.figures["calibration"]["brier"]["prob"]),
        "disagreement": mean("{:.1%}".format, lambda each: each.figures["disagreement"]),
        "JS divergence": mean("{:.4f}".format, lambda each: each.figures["diversity"]["js_mean"]),
        "mutual information": mean("{:.4f}".format, lambda each: each.figures["diversity"]["mutual_information"]),
    }
    if all(result.best_member for result in row.results):
        names = dict.fromkeys(result.best_member[0] for result in row.results)
        over = mean("{:.4f}".format, lambda each: each.best_member[1])
        cells["over the best member (nats)"] = f"{over} ({', '.join(names)})"
    for name in sources:  # of mixtures
        has_it = all(name in result.by_source for result in row.results)
        of_source = mean(headline.text, lambda each, name=name: each.by_source[name].prob) if has_it else "–"
        cells[f"{headline.name} on {name}"] = of_source
    return cells if first.trails > 1 else cells | dict.fromkeys(_OF_SEVERAL, "–")


def read_comparison(folder: Path) -> StudyTable:
    """Read a comparison that was written into ``folder``; a RunError where there is none, or it is damaged."""
    try:
        every = list(csv.DictReader((folder / f"{_COMPARISON}.csv").read_text(encoding="utf-8").splitlines()))
        rows = []
        for name, several in groupby(every, key=lambda row: row["model"]):
            tried, names = zip(*((each["tried"], each["name"]) for each in several), strict=True)
            rows.append(Row(name, [read_result(folder / RESULTS / f"{each}.json") for each in names], tried[0]))
        return compare(rows, every[0]["equal"])
    except (OSError, KeyError, IndexError, csv.Error) as problem:
        raise RunError(f"{folder}: holds no comparison that can be read: {problem}") from None


def diversity_study(results: Mapping[SweepPoint, Result]) -> StudyTable:
    """Put points of a sweep beside one another: how differently trails predict, and what their ensemble gains.

    The NeuroTrails paper (arXiv 2505.17909) speaks of a "Goldilocks zone": trails that are alike gain nothing by being
    averaged, and those that share too little of the trunk, or have too few weights, are worse each.
    """
    places = [{key: value for key, value in at._asdict().items() if value is not None} for at in results]
    rows = [{**at, **result.row()} for at, result in zip(places, results.values(), strict=True)]
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
            **({"weight of the ensemble's loss": f"{row['joint']:g}"} if "joint" in row else {}),
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
