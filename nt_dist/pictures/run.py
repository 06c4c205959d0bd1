"""Pictures of one run: its losses, its calibration, how its trails differ in answers and in topology."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from nt_dist.config.family import Family
from nt_dist.pictures.style import COLORS, INK, LINES, MARKERS, PALE, SEQUENTIAL, nth, panels, styled

ENSEMBLE = "ensemble"
_MAPS_IN_A_ROW = 4


@styled
def loss_curves(records: Sequence[Mapping[str, Any]], family: Family) -> Figure:
    """Draw the training loss and the validation's headline figure of every trail, from lines of ``metrics.jsonl``."""
    losses = {record["step"]: record["loss_per_trail"] for record in records if "loss_per_trail" in record}
    headlines = {record["step"]: family.headline(record["eval"]) for record in records if "eval" in record}
    figure, (training, validation) = panels(2)
    training.set(title="Training loss", ylabel="cross-entropy (nats)")
    _trail_lines(training, list(losses), list(losses.values()))
    validation.set(title="Validation")
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
    for axes in (training, validation):
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
