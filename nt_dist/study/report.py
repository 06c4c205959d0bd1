"""One HTML file about a run: its figures and pictures, with everything in it, to be opened without a network."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from nt_dist import __version__
from nt_dist.checkpoint.checkpoint import CONFIG
from nt_dist.config import Config
from nt_dist.families import load_config
from nt_dist.pictures.run import loss_curves, reliability_diagram, topology_maps, trail_matrix, weight_table
from nt_dist.pictures.runs import short
from nt_dist.pictures.style import Drawn, drawn
from nt_dist.study.compare import Comparison
from nt_dist.study.results import Result
from nt_dist.study.topology_maps import topology_shares
from nt_dist.training.metrics_log import read_metrics
from nt_dist.training.reporter import METRICS

ENSEMBLES = ("ensemble, mean of probabilities", "ensemble, mean of logits")
# What a page of this policy can load is what stands in it: no script, nothing from another place.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1.25rem 4rem; background: #fff; color: #222;
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #ddd; }
p, figcaption { max-width: 46rem; } .quiet { color: #5a5a5a; }
figure { margin: 1rem 0 1.5rem; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .92rem; margin-top: .35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
tr.strong td { font-weight: 600; background: #f2f6fa; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; margin: 1rem 0; }
dt { color: #5a5a5a; } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""


class Picture(NamedTuple):
    """A picture of the report: its file's name, the heading under which it stands, and what it shows, in words."""

    name: str
    section: str
    drawn: Drawn
    caption: str


@dataclass(frozen=True)
class Report:
    """What is known of a run.

    Attributes:
        run: Its folder.
        result: Its newest checkpoint's.
        config: Its settings.
        pictures: All of it that can be drawn.
        comparison: Other runs beside it, or None.
    """

    run: Path
    result: Result
    config: Config
    pictures: Sequence[Picture]
    comparison: Comparison | None

    def html(self) -> str:
        """The file's contents."""
        name = escape(self.run.resolve().name)
        parts = [
            f"<h1>{name}</h1>",
            '<p class="quiet">A NeuroTrails run, as nt_dist found it.</p>',
            _facts(self._facts()),
            "<h2>Predictions</h2>",
            self._predictions(),
            _facts(self._ensemble()),
        ]
        for section in dict.fromkeys(picture.section for picture in self.pictures):
            parts.append(f"<h2>{escape(section)}</h2>")
            parts += [_figure(picture) for picture in self.pictures if picture.section == section]
        if self.comparison:
            cells = self.comparison.cells()
            parts += ["<h2>All runs of the comparison</h2>", _table(list(cells[0]), [row.values() for row in cells])]
            parts += [f'<p class="quiet">{escape(note)}</p>' for note in self.comparison.notes()]
        parts += ["<h2>Settings</h2>", f"<pre>{escape(self.config.to_toml())}</pre>"]
        return "\n".join([_head(name), *parts, "</body>", "</html>", ""])

    def _facts(self) -> Mapping[str, str]:
        result, model, trails = self.result, self.config.model, self.config.trails
        blocks = f"{self.config.trunk_layers} shared, then {model.num_layers - self.config.trunk_layers} in each"
        return {
            "trails": f"{trails.count}; of {model.num_layers} blocks {blocks}",
            "weights": f"{result.weights:,} stored (all of them active) of {result.dense_weights:,}",
            "training": f"step {result.steps:,} of {self.config.train.steps:,}, {result.tokens:,} tokens",
            "training FLOP a token": _flops(result.training_flops, result.training_flops_dense),
            "inference FLOP a token": _flops(result.inference_flops, result.inference_flops_dense),
            "evaluated on": f"{result.figures['tokens']:,} tokens of the validation texts",
            "checkpoint": result.checkpoints[0],
            "nt_dist": __version__,
        }

    def _predictions(self) -> str:
        """The table of predictors; the ensemble's rows stand out."""
        figures, calibration, headline = self.result.figures, self.result.figures["calibration"], self.result.headline
        columns = {
            headline.name: (asdict(headline), headline.text),
            "nats a token": (figures["nll"], "{:.4f}".format),
            "right answers": (figures["accuracy"], "{:.1%}".format),
            "ECE": (calibration["ece"], "{:.2%}".format),
            "adaptive ECE": (calibration["adaptive_ece"], "{:.2%}".format),
            "Brier": (calibration["brier"], "{:.4f}".format),
            "temperature": (calibration["temperature"]["value"], "{:.3f}".format),
        }
        written = [map(form, [*each["trails"], each["prob"], each["logit"]]) for each, form in columns.values()]
        count = self.result.num_trails
        names = [*(f"trail {number + 1}" for number in range(count)), *ENSEMBLES]
        rows = list(zip(names, *written, strict=True))
        return _table(["", *columns], rows if count > 1 else rows[:1], strong_from=count)

    def _ensemble(self) -> Mapping[str, str]:
        """What the ensemble gains, and how far its trails differ."""
        figures, headline = self.result.figures, self.result.headline
        diversity, topology = figures["diversity"], figures["topology"]
        facts = {}
        if self.result.num_trails > 1:
            gain = f"{headline.text(headline.gain)} {headline.name}"
            facts |= {
                "ensemble gain": f"{gain} ({headline.prob / headline.mean - 1:+.1%} against the trails' mean)",
                "disagreement": f"{figures['disagreement']:.1%} of tokens, mean over pairs of trails",
                "JS divergence": f"{diversity['js_mean']:.4f} nats",
                "mutual information": f"{diversity['mutual_information']:.4f} nats",
                "entropy": f"{diversity['entropy_mean']:.3f} nats, that of the mean of probabilities",
            }
        if topology:
            kept = f"as far as the checkpoints kept show it ({len(topology['checkpoints'])})"
            facts["ever active"] = f"{topology['ever_active']:.1%} of entries, {topology['density']:.1%} now; {kept}"
        if topology and topology["overlap"] is not None:
            chance = topology["overlap_chance"]
            facts["topologies in common"] = f"{topology['overlap']:.1%} (Jaccard index; {chance:.1%} by chance)"
        return facts


def make_report(run: Path, result: Result, comparison: Comparison | None = None) -> Report:
    """Gather what is known of a run.

    Args:
        run: Its folder.
        result: Its newest checkpoint's (study.results.result_of).
        comparison: Other runs beside it.

    Raises:
        NTDistError: The checkpoint or ``metrics.jsonl`` cannot be used.
    """
    checkpoint = Path(result.checkpoints[0])
    config = load_config(checkpoint / CONFIG, check_paths=False)
    pictures = [*_learning(run, config), *_answers(result), *_topology(checkpoint, config, result)]
    return Report(run, result, config, [*pictures, *_beside(comparison)], comparison)


def _learning(run: Path, config: Config) -> Iterable[Picture]:
    records = read_metrics(run / METRICS)
    if records:
        caption = "Loss of each trail on the training data, step by step, and what comes of it on the validation data."
        yield Picture("loss_curves", "Training", drawn(loss_curves(records, config.family)), caption)


def _answers(result: Result) -> Iterable[Picture]:
    figures, section = result.figures, "Calibration and diversity"
    caption = "How often the likeliest next token is the right one, against how sure the model is of it, in 15 bins of "
    caption += "confidence; below the diagonal it is too sure. Underneath: how many tokens lie in each bin."
    yield Picture("reliability", section, drawn(reliability_diagram(figures["reliability"])), caption)
    if result.num_trails > 1:
        matrix = figures["diversity"]["disagreement_matrix"]
        figure = trail_matrix(matrix, "Disagreement of the trails", "share of tokens answered differently")
        yield Picture("disagreement", section, drawn(figure), "Share of tokens whose likeliest continuation differs.")


def _topology(checkpoint: Path, config: Config, result: Result) -> Iterable[Picture]:
    topology, section = result.figures["topology"], "Topology"
    if not topology:
        return
    caption = "Where the active weights lie, over all trails, in the first block and the last, embedding and output."
    yield Picture("topology_maps", section, drawn(topology_maps(topology_shares(checkpoint, config))), caption)
    weights = topology["weights"]
    overlaps = {name: each["overlap"] for name, each in weights.items() if each["overlap"] is not None}
    if overlaps:
        figure = weight_table(overlaps, "Overlap of the trails' topologies", "Jaccard index")
        caption = "Entries that two trails both have, over those that either has, mean over pairs."
        yield Picture("topology_overlap", section, drawn(figure), caption)
    ever = {name: each["ever_active"] for name, each in weights.items()}
    figure = weight_table(ever, "Weights ever active", "share of entries")
    caption = "Entries that were active in any of the checkpoints kept: how much of the dense matrix was explored."
    yield Picture("topology_explored", section, drawn(figure), caption)


def _beside(comparison: Comparison | None) -> Iterable[Picture]:
    if comparison:
        better = "Lower" if comparison.results[0].headline.lower_is_better else "Higher"
        for name, figure in comparison.pictures().items():
            yield Picture(name, "Beside other runs", drawn(figure), f"{better} is better, and so is further left.")


def _flops(sparse: float, dense: float) -> str:
    return f"{short(sparse)} sparse-effective, {short(dense)} dense-equivalent"


def _head(name: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} – nt_dist</title>
<style>{_STYLE}</style>
</head>
<body>"""


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in facts.items())
    return f"<dl>\n{items}</dl>" if facts else ""


def _table(heading: Sequence[str], rows: Sequence[Iterable[str]], strong_from: int | None = None) -> str:
    """A table; rows from number ``strong_from`` on stand out."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading) + "</tr>"]
    for number, cells in enumerate(rows):
        look = "" if strong_from is None or number < strong_from else " class=strong"
        lines.append(f"<tr{look}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _figure(picture: Picture) -> str:
    """A picture in the file itself: as an image, whose names cannot meet those of another picture."""
    data = b64encode(picture.drawn.svg).decode()
    caption = escape(picture.caption)
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
    return f'<figure id="{picture.name}">{image}<figcaption>{caption}</figcaption></figure>'
