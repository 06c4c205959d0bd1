"""One HTML file about a run: its figures and pictures, with everything in it, to be opened without a network."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from nt_dist.checkpoint.fragments import FragmentReader
from nt_dist.checkpoint.manifest import CONFIG, read_manifest
from nt_dist.config import Config
from nt_dist.errors import NTDistError, printable
from nt_dist.evaluation.evaluate_checkpoint import saved_config
from nt_dist.evaluation.report import by_row, diversity_notes, gain_notes, scores, topology_notes
from nt_dist.inference import load_ensemble
from nt_dist.inference.generate import Sampling, generate
from nt_dist.model.weights import weight_specs
from nt_dist.pictures import (
    Drawn,
    drawn,
    loss_curves,
    reliability_diagram,
    short,
    topology_maps,
    trail_matrix,
    weight_table,
)
from nt_dist.sparsity.spec import WeightSpec
from nt_dist.sparsity.weight import flat_index
from nt_dist.study.results import Result
from nt_dist.study.tables import StudyTable
from nt_dist.training.metrics_log import METRICS, read_metrics
from nt_dist.training.tensorboard import shrunk

MAP_SIDE = 48  # fields a side, at most
SAMPLE_TOKENS, SAMPLING = 100, Sampling(temperature=0.8, top_p=0.95)
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
.sample { white-space: pre-wrap; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }
"""


class Picture(NamedTuple):
    """A picture of the report: its file's name, the heading under which it stands, and what it shows, in words."""

    name: str
    section: str
    figure: Figure
    caption: str


def make_report(run: Path, result: Result, comparison: StudyTable | None = None) -> tuple[str, dict[str, Drawn]]:
    """Gather what is known of a run, perhaps beside others; return the file's text and the pictures in it by name."""
    checkpoint, name = Path(result.checkpoints[0]), escape(run.resolve().name)
    config = saved_config(checkpoint)
    pictures = list(_pictures(run, config, result, comparison))
    files = {picture.name: drawn(picture.figure) for picture in pictures}
    parts = [
        f"<h1>{name}</h1>",
        '<p class="quiet">A NeuroTrails run, as nt_dist found it.</p>',
        _list(_facts(result, config, checkpoint)),
        "<h2>Predictions</h2>",
        _predictions(result),
        _list(_ensemble(result)),
    ]
    for section in dict.fromkeys(picture.section for picture in pictures):
        parts.append(f"<h2>{section}</h2>")
        parts += [_figure(picture, files[picture.name].svg) for picture in pictures if picture.section == section]
    parts += _sample(checkpoint, config)
    if comparison:
        parts += ["<h2>All runs of the comparison</h2>", _table(comparison.cells)]
        parts += [f'<p class="quiet">{escape(note)}</p>' for note in comparison.notes]
    parts += ["<h2>Settings</h2>", f"<pre>{escape((checkpoint / CONFIG).read_text(encoding='utf-8'))}</pre>"]
    return _page(name, parts), files


def _facts(result: Result, config: Config, checkpoint: Path) -> Mapping[str, str]:
    blocks, shared = config.model.num_layers, config.trunk_layers
    sample, samples = result.headline.sample, result.headline.samples
    manifest = read_manifest(checkpoint)
    pace = result.tokens_seen / result.training_seconds if result.training_seconds else 0
    return {
        "trails": f"{result.trails}; of {blocks} blocks {shared} shared, then {blocks - shared} in each",
        "weights": f"{result.weights_stored:,} stored (all of them active) of {result.weights_dense:,}",
        "training": f"step {result.steps:,} of {config.train.steps:,}, {result.tokens_seen:,} {samples}",
        "learning rate": f"{config.train.lr:g} at most, {config.train.lr_schedule}, {config.train.optimizer}",
        "speed": f"{pace:,.0f} {samples}/s" if pace else "not known",
        f"training FLOP a {sample}": _flops(result.training_flops_sparse, result.training_flops_dense),
        f"inference FLOP a {sample}": _flops(result.inference_flops_sparse, result.inference_flops_dense),
        "evaluated on": f"{result.num_samples:,} {samples} of the validation data",
        "checkpoint": result.checkpoints[0],
        "nt_dist": f"{manifest.written_by}, commit {manifest.training_state.extra.get('commit') or 'not known'}",
    }


def _sample(checkpoint: Path, config: Config) -> list[str]:
    """What the model writes, where it writes texts and its tokenizer is still there."""
    if config.family.task != "text-generation":
        return []
    try:
        pieces = generate(load_ensemble(checkpoint), "", SAMPLE_TOKENS, SAMPLING)
        text = printable("".join(piece.text for piece in pieces))
    except NTDistError as problem:
        return ["<h2>Sample</h2>", f"<p>None can be made: {escape(str(problem))}</p>"]
    how = f"temperature {SAMPLING.temperature:g}, top_p {SAMPLING.top_p:g}, seed {SAMPLING.seed}"
    said = f"What the ensemble writes from nothing, up to {SAMPLE_TOKENS} tokens: {how}."
    return ["<h2>Sample</h2>", f'<p class="quiet">{said}</p>', f'<pre class="sample">{escape(text)}</pre>']


def _flops(sparse: float, dense: float) -> str:
    return f"{short(sparse)} sparse-effective, {short(dense)} dense-equivalent"


def _predictions(result: Result) -> str:
    """The table of predictors; the ensemble's rows stand out."""
    headline, temperature = result.headline, result.figures["calibration"]["temperature"]["value"]
    columns = {**scores(result.figures), "temperature": temperature}
    rows = [
        {"": name, headline.name: headline.text(first)}
        | {each: f"{v:.4f}" for each, v in zip(columns, rest, strict=True)}
        for name, (first, *rest) in by_row([vars(headline), *columns.values()]).items()
    ]
    return _table(rows, strong_from=result.trails)


def _ensemble(result: Result) -> Mapping[str, str]:
    """What the ensemble gains, how far its trails differ, and what is known of the topologies."""
    figures, facts = result.figures, {}
    if result.trails > 1:
        facts |= gain_notes(result.headline, figures) | diversity_notes(figures["diversity"])
    return facts | topology_notes(figures["topology"]) if figures["topology"] else facts


def _pictures(run: Path, config: Config, result: Result, comparison: StudyTable | None) -> Iterator[Picture]:
    figures, headline = result.figures, result.headline
    records = read_metrics(run / METRICS)
    if records:
        caption = "Loss of each trail on the training data, step by step, and what comes of it on the validation data."
        yield Picture("loss_curves", "Training", loss_curves(records, config.family), caption)
    section = "Calibration and diversity"
    caption = (
        "How often the likeliest answer is the right one, against how sure the model is of it, in 15 bins of "
        f"confidence; below the diagonal it is too sure. Underneath: how many {headline.samples} lie in each bin."
    )
    yield Picture("reliability", section, reliability_diagram(figures["reliability"], headline.samples), caption)
    if result.trails > 1:
        label = f"share of {headline.samples} answered differently"
        figure = trail_matrix(figures["diversity"]["disagreement_matrix"], "Disagreement of the trails", label)
        yield Picture("disagreement", section, figure, f"The {label}, pair by pair.")
    if topology := figures["topology"]:
        section, caption = "Topology", "Where the active weights lie, over all trails, in the two layers at either end."
        shares = topology_shares(Path(result.checkpoints[0]), config)
        yield Picture("topology_maps", section, topology_maps(shares), caption)
        layers = {name: spec.layer for name, spec in weight_specs(config).items()}
        weights = topology["weights"]
        overlaps = {name: _beyond_chance(each) for name, each in weights.items() if each["overlap"] is not None}
        if overlaps:
            figure = weight_table(overlaps, layers, "Overlap of the trails beyond chance", "share of what could be")
            caption = (
                "Entries that two trails both have, over those that either has (Jaccard index j, mean over pairs), "
                "beyond those of chance: (j - c) / (1 - c), where two topologies of density d that are drawn apart "
                "have c = d / (2 - d)."
            )
            yield Picture("topology_overlap", section, figure, caption)
        ever = {name: each["ever_active"] for name, each in weights.items()}
        figure = weight_table(ever, layers, "Weights ever active", "share of entries")
        caption = "Entries that were active in any of the checkpoints kept: how much of the dense matrix was explored."
        yield Picture("topology_explored", section, figure, caption)
    better = "Lower" if headline.lower_is_better else "Higher"
    for name, figure in comparison.figures.items() if comparison else ():
        yield Picture(name, "Beside other runs", figure, f"{better} is better, and so is further left.")


def _beyond_chance(weight: Mapping[str, float]) -> float:
    """How much of the overlap that chance leaves open two trails have; below 0, less than by chance."""
    chance = weight["density"] / (2 - weight["density"])
    return (weight["overlap"] - chance) / (1 - chance) if chance < 1 else 0.0


def topology_shares(checkpoint: Path, config: Config) -> dict[str, np.ndarray]:
    """Read the topologies of the sparse matrices in the two layers at either end, which are the most unlike.

    Returns, by weight name, the share of positions that are active, over all trails, in each field of a grid of at most
    MAP_SIDE × MAP_SIDE laid over the matrix without its padding; a kernel's rows are what makes up one output.
    """
    specs = weight_specs(config).values()
    layers = list(dict.fromkeys(spec.layer for spec in specs))
    ends = {*layers[:2], *layers[-2:]}
    with FragmentReader(checkpoint, read_manifest(checkpoint)) as reader:
        return {spec.name: _shares(reader, spec) for spec in specs if spec.is_sparse and spec.layer in ends}


def _shares(reader: FragmentReader, spec: WeightSpec) -> np.ndarray:
    active = torch.zeros(prod(spec.shape))
    every = range(spec.shards)
    for trail in range(spec.trails):
        for shard in every:
            positions = torch.from_numpy(reader.read(spec.name, trail, shard, ())["positions"]).long()
            active[flat_index(spec, every, shard, positions)] += 1 / spec.trails  # no position stands there twice
    real = active.view(spec.shape).narrow(spec.cut_axis, 0, spec.valid)
    return shrunk(real.flatten(1)[None], MAP_SIDE)[0].numpy()


def _list(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in facts.items())
    return f"<dl>\n{items}</dl>" if facts else ""


def _table(rows: Sequence[Mapping[str, str]], strong_from: int | None = None) -> str:
    """A table; rows from number ``strong_from`` on stand out."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(name)}</th>' for name in rows[0]) + "</tr>"]
    for number, row in enumerate(rows):
        look = "" if strong_from is None or number < strong_from else " class=strong"
        lines.append(f"<tr{look}>{''.join(f'<td>{escape(cell)}</td>' for cell in row.values())}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _figure(picture: Picture, svg: bytes) -> str:
    """A picture in the file itself: as an image, whose names cannot meet those of another picture."""
    caption = escape(picture.caption)
    image = f'<img src="data:image/svg+xml;base64,{b64encode(svg).decode()}" alt="{caption}">'
    return f'<figure id="{picture.name}">{image}<figcaption>{caption}</figcaption></figure>'


def _page(title: str, parts: Iterable[str]) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – nt_dist</title>
<style>{_STYLE}</style>
</head>
<body>
{chr(10).join(parts)}
</body>
</html>
"""
