"""Pictures of runs, drawn by matplotlib without a display; each function takes plain figures and returns a Figure.

All are light, legible, and in colours that the colour-blind tell apart.
"""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from nt_dist.config.family import Family, Headline
from nt_dist.files import write_whole

ENSEMBLE = "ensemble"
_MAPS_IN_A_ROW = 4
INK, PALE = "#222222", "#6a6a6a"
SEQUENTIAL = "cividis"  # the same order of brightness with any colour vision, and in grey
# Okabe and Ito's palette (2008), told apart with any colour vision; its yellow, too light on white, is left out
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")

styled = matplotlib.rc_context(
    {
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": PALE,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "figure.facecolor": "white",
        "svg.fonttype": "path",  # the letters themselves: the same without the font
        "svg.hashsalt": "nt_dist",  # the same picture is the same file
    }
)
"""Decorates a function that draws, or saves, so that these settings hold in it."""


def nth(choices: Sequence[str], number: int) -> str:
    """Return the choice of this number; they come again when all are used."""
    return choices[number % len(choices)]


def panels(count: int, width: float = 5.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Return a figure and its ``count`` axes in a row, ``width`` × ``height`` inches each."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


class Drawn(NamedTuple):
    """A picture as the contents of two files."""

    svg: bytes
    png: bytes


@styled
def drawn(figure: Figure) -> Drawn:
    """Draw a figure: for any size, and in pixels."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", dpi=144, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=144)
    return Drawn(svg.getvalue(), png.getvalue())


def save_pictures(pictures: Mapping[str, Drawn], folder: Path) -> None:
    """Write each picture into ``folder`` as NAME.svg and NAME.png; a RunError where that fails."""
    for name, picture in pictures.items():
        write_whole(folder / f"{name}.svg", picture.svg)
        write_whole(folder / f"{name}.png", picture.png)


# -- one run -----------------------------------------------------------------------------------------------------------


@styled
def loss_curves(records: Sequence[Mapping[str, Any]], family: Family) -> Figure:
    """Draw the training loss and the validation's headline figure of every trail, from lines of ``metrics.jsonl``."""
    losses = {record["step"]: record["loss_per_trail"] for record in records if "loss_per_trail" in record}
    headlines = {record["step"]: family.headline(record["eval"]) for record in records if "eval" in record}
    figure, (training, apart, validation) = panels(3)
    training.set(title="Training loss", ylabel="cross-entropy (nats)")
    apart.set(title="Loss of each trail less their mean", ylabel="cross-entropy (nats)")
    validation.set(title="Validation")
    _trail_lines(training, list(losses), list(losses.values()))
    if losses:  # in which trails mostly lie on one another
        values = np.array(list(losses.values()), dtype=float)
        _trail_lines(apart, list(losses), values - values.mean(-1, keepdims=True))
    if headlines:
        first = next(iter(headlines.values()))
        training.set(ylabel=f"cross-entropy (nats a {first.sample})")
        validation.set(title=f"Validation {first.name}", ylabel=first.name)
        _trail_lines(validation, list(headlines), [each.trails for each in headlines.values()], marker="o")
        if len(first.trails) > 1:
            ensemble = np.array([each.prob for each in headlines.values()], dtype=float)
            validation.plot(list(headlines), ensemble, color=INK, marker="o", markersize=4, linewidth=2, label=ENSEMBLE)
        if first.lower_is_better:
            validation.set(ylabel=f"{first.name} (log scale)", yscale="log")
            validation.yaxis.set_major_formatter(ScalarFormatter())
            validation.yaxis.set_minor_formatter(ScalarFormatter())
            validation.tick_params(axis="y", which="minor", labelsize=8)
    for axes in (training, apart, validation):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if axes.lines:
            axes.legend()
    return figure


def _trail_lines(axes: Axes, steps: Sequence[int], values: Sequence[Sequence[float | None]], **look) -> None:
    """One line a trail, through ``values`` [steps, T], in which None stands for what is not finite."""
    for trail, line in enumerate(np.array(values, dtype=float).T):
        look |= {"color": nth(COLORS, trail), "linestyle": nth(LINES, trail), "label": f"trail {trail + 1}"}
        axes.plot(steps, line, linewidth=1.3, markersize=4, **look)


@styled
def reliability_diagram(reliability: Mapping[str, Any], samples: str) -> Figure:
    """Draw accuracy against confidence, and how many ``samples`` have which (Guo et al., arXiv 1706.04599).

    ``reliability`` has edges, and the bins of each predictor: see evaluation.full.
    """
    figure = Figure(figsize=(5.0, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle=":", label="as it should be")
    trails = reliability["trails"]
    for number, bins in enumerate(trails):
        look = {"color": nth(COLORS, number), "marker": nth(MARKERS, number), "label": f"trail {number + 1}"}
        upper.plot(*_full_bins(bins), linewidth=1, markersize=4, alpha=0.9, **look)
    shown = reliability["prob"] if len(trails) > 1 else trails[0]
    if len(trails) > 1:
        label = f"{ENSEMBLE}, mean of probabilities"
        upper.plot(*_full_bins(shown), color=INK, linewidth=2, marker="o", markersize=5, label=label)
    upper.set(title="Reliability", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="lower right", fontsize=9)
    edges, counts = reliability["edges"], np.asarray(shown["count"], dtype=float)
    shares = counts / max(counts.sum(), 1)
    lower.bar(edges[:-1], shares, np.diff(edges), align="edge", color=COLORS[5], edgecolor="white")
    lower.set(xlabel="confidence (highest probability)", ylabel=samples)
    lower.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return figure


def _full_bins(bins: Mapping[str, Sequence]) -> np.ndarray:
    """Confidences and accuracies of the bins that hold anything."""
    return np.array([pair for pair in zip(bins["confidence"], bins["accuracy"], strict=True) if pair[0] is not None]).T


@styled
def trail_matrix(matrix: Sequence[Sequence[float]], title: str, label: str) -> Figure:
    """Draw a figure of each pair of trails [T, T], with its value in each field; the diagonal says nothing."""
    values = np.array(matrix, dtype=float)
    np.fill_diagonal(values, np.nan)
    side = max(3.2, 0.62 * len(values) + 1.6)
    names = [f"trail {number + 1}" for number in range(len(values))]
    axes = _table((side + 1.2, side), values, names, names, label, "{:.3f}")
    axes.tick_params(axis="x", labelrotation=45 if len(values) > 4 else 0)
    axes.set_title(title)
    return axes.figure


@styled
def weight_table(values: Mapping[str, float], layers: Mapping[str, str], title: str, label: str) -> Figure:
    """Draw a share of each weight: a row for each kind of matrix, a column for each of the layers that are alike.

    Values and layers are by weight name, in the order of the layers; a matrix of "blocks.0" is called "blocks.0.KIND".
    A layer none of whose matrices another layer has, too, has no column: they stand in rows below, in the column of the
    layer before it.
    """
    kinds = {name: name.removeprefix(f"{layers[name]}.") for name in values}
    counts = Counter(kinds.values())
    columns = list(dict.fromkeys(layers[name] for name in values if counts[kinds[name]] > 1))
    rows = list(dict.fromkeys(kinds[name] for name in sorted(values, key=lambda name: layers[name] not in columns)))
    table, column = np.full((len(rows), max(1, len(columns))), np.nan), 0
    for name, value in values.items():
        column = columns.index(layers[name]) if layers[name] in columns else column
        table[rows.index(kinds[name]), column] = value
    size = max(5.0, 0.75 * table.shape[1] + 3.2), 0.42 * len(table) + 1.5
    form = "{:.2f}" if table.shape[1] <= 16 else None
    series = {layer.partition(".")[0] for layer in columns}  # "blocks", which the axis names
    columns = [layer.partition(".")[2] for layer in columns] if len(series) == 1 else columns
    axes = _table(size, table, rows, columns, label, form, aspect="auto", vmax=1)
    axes.set(title=title, xlabel="block" if columns else "")
    return axes.figure


@styled
def topology_maps(shares: Mapping[str, np.ndarray]) -> Figure:
    """Draw where active weights lie: by weight name, their share in each field of a grid [rows, columns], 0 .. 1."""
    columns = min(_MAPS_IN_A_ROW, len(shares))
    rows = -(-len(shares) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, max(3.2, 2.5 * rows)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    look = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": max(float(each.max()) for each in shares.values())}
    for place, (name, share) in zip(axes, shares.items(), strict=False):
        image = place.imshow(share, aspect="auto", interpolation="nearest", **look)
        place.set_title(name, fontsize=8, fontweight="normal")
        place.set(xticks=[], yticks=[])
        _no_frame(place)
    for place in axes[len(shares) :]:
        place.set_visible(False)
    figure.colorbar(image, ax=list(axes), label="share of positions that are active", shrink=0.8)
    return figure


def _table(size, values: np.ndarray, rows: Sequence, columns: Sequence, label: str, form: str | None, **look) -> Axes:
    """Draw values as colours, from 0 on, or rounding would look like a difference; nan is left white.

    ``form`` writes them into their fields, in white or black, whichever is legible there.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, **look)
    for (row, column), value in np.ndenumerate(values):
        if form and not math.isnan(value):
            brightness = np.dot((0.299, 0.587, 0.114), image.cmap(image.norm(value))[:3])
            color = "white" if brightness < 0.55 else INK
            axes.text(column, row, form.format(value), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    _no_frame(axes)
    figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    return axes


def _no_frame(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


# -- several runs ------------------------------------------------------------------------------------------------------


@styled
def headline_against(headlines: Mapping[str, Headline], costs: Mapping[str, Sequence[float]]) -> Figure:
    """Draw runs' headline figures, by name, against one cost or several, a panel each; a marker is a run's ensemble.

    Where a run has several trails, a thin line leads to it from the mean of theirs (a short bar): its length is what
    the ensemble gains. Costs of the runs are by what the cost is called.
    """
    figure, panel = panels(len(costs), width=6.4, height=4.6)
    for axes, (label, values) in zip(panel, costs.items(), strict=True):
        for number, (x, headline) in enumerate(zip(values, headlines.values(), strict=True)):
            look, mean, ensemble = {"color": nth(COLORS, number)}, headline.mean, headline.prob
            if len(headline.trails) > 1:
                axes.plot([x, x], [mean, ensemble], linewidth=1.2, **look)
                axes.plot(x, mean, marker="_", markersize=11, markeredgewidth=1.6, **look)
            marker = nth(MARKERS, number // len(COLORS))
            axes.plot(x, ensemble, marker=marker, markersize=8, linestyle="none", **look)
        axes.set(xlabel=label, ylabel=f"validation {next(iter(headlines.values())).name}")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.set_xlim(0, 1.38 * max(values))  # room for the names
        axes.margins(y=0.12)
        _name(axes, {name: (x, each.prob) for x, (name, each) in zip(values, headlines.items(), strict=True)})
    figure.supxlabel("marker: ensemble; short bar: mean of its trails", color=PALE, fontsize=9, x=0.01, ha="left")
    return figure


def short(value: float) -> str:
    """A large number in few letters, as "26.1 M"."""
    thousands = min(max(int(math.log10(abs(value) or 1) // 3), 0), 6)
    return f"{value / 1000**thousands:.3g} {' kMGTPE'[thousands]}".rstrip()


def _name(axes: Axes, points: Mapping[str, tuple[float, float]], size: float = 8.5) -> None:
    """Writes each name beside its point; names that would lie on one another are moved apart, up and down."""
    axes.figure.draw_without_rendering()  # fixes the axes' place on the page
    line, gap = 1.35 * size, 9  # all in points of 1/72 inch, as the text's size is
    places = {name: axes.transData.transform(point) * 72 / axes.figure.dpi for name, point in points.items()}
    placed: list[tuple[float, float, float]] = []  # left, right, middle
    for name, (x, y) in sorted(places.items(), key=lambda named: tuple(named[1][::-1])):
        left, right, middle = x + gap, x + gap + 0.62 * size * len(name), y
        while any(left < end and start < right and abs(middle - other) < line for start, end, other in placed):
            middle += line / 4
        placed.append((left, right, middle))
        arrow = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6} if middle - y > line else None
        look = {"va": "center", "fontsize": size, "color": INK, "arrowprops": arrow, "textcoords": "offset points"}
        axes.annotate(name, points[name], (gap, middle - y), **look)


@styled
def against_diversity(
    runs: Sequence[tuple[float, int, float | None]],
    measures: Mapping[str, Sequence[float]],
    outcomes: Sequence[float],
    label: str,
) -> Figure:
    """Draw what came of the trails' prediction diversity, a panel for each measure of diversity.

    Colour says how long the trails are, the marker how dense, the line what weight the ensemble's loss has; points that
    differ in density alone are joined. ``runs`` are density, blocks in a trail and that weight (None: not varied) of
    each; ``label`` is what the outcomes are called.
    """
    figure, panel = panels(len(measures), width=5.4, height=4.4)
    densities, lengths, joints = (sorted(set(each)) for each in zip(*runs, strict=True))
    markers = {density: nth(MARKERS, number) for number, density in enumerate(densities)}
    for axes, (measure, values) in zip(panel, measures.items(), strict=True):
        for (number, length), (kind, joint) in product(enumerate(lengths), enumerate(joints)):
            points = zip(runs, values, outcomes, strict=True)
            line = sorted((density, x, y) for (density, *rest), x, y in points if rest == [length, joint])
            if not line:
                continue
            _, x, y = zip(*line, strict=True)
            axes.plot(x, y, nth(LINES, kind), color=nth(COLORS, number), linewidth=0.8)
            for density, x, y in line:
                axes.plot(x, y, color=nth(COLORS, number), marker=markers[density], markersize=7, linestyle="none")
        axes.set(xlabel=measure, ylabel=label)
    for number, length in enumerate(lengths):
        axes.plot([], [], color=nth(COLORS, number), linewidth=2, label=f"{length} blocks in a trail")
    for kind, joint in enumerate(joints) if len(joints) > 1 else []:
        axes.plot([], [], nth(LINES, kind), color=PALE, label=f"{joint:g} × the ensemble's loss")
    for density in densities:
        axes.plot([], [], color=PALE, marker=markers[density], linestyle="none", label=f"density {density:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)  # beside the last panel, for all
    return figure
