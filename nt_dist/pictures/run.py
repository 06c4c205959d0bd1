"""Pictures of one run: its losses, its calibration, how its trails differ in answers and in topology."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from nt_dist.config.family import Family
from nt_dist.pictures.style import COLORS, INK, LINES, MARKERS, PALE, SEQUENTIAL, panels, styled

ENSEMBLE = "ensemble"


@styled
def loss_curves(records: Sequence[Mapping[str, Any]], family: Family) -> Figure:
    """Draw the training loss and the validation's headline figure of every trail.

    Args:
        records: Lines of ``metrics.jsonl``.
        family: Whose figures they are.
    """
    steps = [record for record in records if "loss_per_trail" in record]
    headlines = [(record["step"], family.headline(record["eval"])) for record in records if "eval" in record]
    name = headlines[0][1].name if headlines else "figure"
    figure, (training, validation) = panels(2)
    _lines(training, [(record["step"], record["loss_per_trail"]) for record in steps], "")
    training.set(title="Training loss", xlabel="step", ylabel="cross-entropy (nats a token)")
    _lines(validation, [(step, headline.trails) for step, headline in headlines], "o")
    if headlines and len(headlines[0][1].trails) > 1:
        points = [(step, _number(headline.prob)) for step, headline in headlines]
        validation.plot(*zip(*points, strict=True), color=INK, marker="o", markersize=4, linewidth=2, label=ENSEMBLE)
    validation.set(title=f"Validation {name}", xlabel="step", ylabel=f"{name} (log scale)", yscale="log")
    validation.yaxis.set_major_formatter(ScalarFormatter())
    validation.yaxis.set_minor_formatter(ScalarFormatter())
    validation.tick_params(axis="y", which="minor", labelsize=8)
    for axes in (training, validation):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if axes.lines:
            axes.legend()
    return figure


def _lines(axes: Axes, points: Sequence[tuple[int, Sequence[float]]], marker: str) -> None:
    """One line a trail, through points (step, a figure of each trail)."""
    for trail in range(len(points[0][1]) if points else 0):
        look = {"color": COLORS[trail % len(COLORS)], "linestyle": LINES[trail % len(LINES)], "marker": marker}
        values = [_number(each[trail]) for _, each in points]
        label = f"trail {trail + 1}"
        axes.plot([step for step, _ in points], values, linewidth=1.3, markersize=4, label=label, **look)


def _number(value: float | None) -> float:
    """A figure of ``metrics.jsonl``, where null stands for what is not finite."""
    return math.nan if value is None else value


@styled
def reliability_diagram(reliability: Mapping[str, Any]) -> Figure:
    """Draw accuracy against confidence, and how many tokens have which confidence (Guo et al., arXiv 1706.04599).

    Args:
        reliability: See evaluation.full: edges, and the bins of each predictor.
    """
    figure = Figure(figsize=(5.0, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle=":", label="as it should be")
    trails = reliability["trails"]
    for number, bins in enumerate(trails):
        look = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        upper.plot(*_full_bins(bins), linewidth=1, markersize=4, alpha=0.9, label=f"trail {number + 1}", **look)
    shown = reliability["prob"] if len(trails) > 1 else trails[0]
    if len(trails) > 1:
        label = f"{ENSEMBLE}, mean of probabilities"
        upper.plot(*_full_bins(shown), color=INK, linewidth=2, marker="o", markersize=5, label=label)
    upper.set(title="Reliability", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="lower right", fontsize=9)
    edges = reliability["edges"]
    counts = np.asarray(shown["count"], dtype=float)
    shares = counts / max(counts.sum(), 1)
    lower.bar(edges[:-1], shares, np.diff(edges), align="edge", color=COLORS[5], edgecolor="white")
    lower.set(xlabel="confidence (highest probability)", ylabel="tokens")
    lower.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    return figure


def _full_bins(bins: Mapping[str, Sequence]) -> np.ndarray:
    """Confidences and accuracies of the bins that hold a token."""
    return np.array([pair for pair in zip(bins["confidence"], bins["accuracy"], strict=True) if pair[0] is not None]).T


@styled
def trail_matrix(matrix: Sequence[Sequence[float]], title: str, label: str, diagonal: bool = False) -> Figure:
    """Draw a figure of each pair of trails, with its value in each field.

    Args:
        matrix: [T, T].
        title: Above it.
        label: What the figure is, with its unit.
        diagonal: Whether a trail's figure with itself says anything; otherwise it is left white.
    """
    values = np.array(matrix, dtype=float)
    if not diagonal:
        np.fill_diagonal(values, np.nan)
    side = max(3.2, 0.62 * len(values) + 1.6)
    names = [f"trail {number + 1}" for number in range(len(values))]
    axes = _table((side + 1.2, side), values, names, names, label, "{:.3f}")
    axes.tick_params(axis="x", labelrotation=45 if len(values) > 4 else 0)
    axes.set_title(title)
    return axes.figure


@styled
def weight_table(values: Mapping[str, float], title: str, label: str) -> Figure:
    """Draw a share of each weight: a row for each kind of matrix, a column for each block.

    Args:
        values: By weight name, as in "blocks.0.attention.query"; those outside blocks ("output") come last.
        title: Above it.
        label: What the share is of.
    """
    in_block = {name: name.split(".", 2)[1:] for name in values if name.startswith("blocks.")}
    blocks = sorted({int(block) for block, _ in in_block.values()})
    kinds = list(dict.fromkeys(kind for _, kind in in_block.values()))
    others = [name for name in values if name not in in_block]
    table = np.full((len(kinds) + len(others), max(1, len(blocks))), np.nan)
    for name, (block, kind) in in_block.items():
        table[kinds.index(kind), blocks.index(int(block))] = values[name]
    for row, name in enumerate(others, len(kinds)):
        table[row, -1 if name == "output" else 0] = values[name]
    size = max(5.0, 0.75 * table.shape[1] + 3.2), 0.42 * len(table) + 1.5
    form = "{:.2f}" if table.shape[1] <= 16 else None
    axes = _table(size, table, [*kinds, *others], blocks, label, form, aspect="auto", vmax=1)
    axes.set(title=title, xlabel="block" if blocks else "")
    return axes.figure


@styled
def topology_maps(shares: Mapping[str, np.ndarray], columns: int = 4) -> Figure:
    """Draw where the active weights of some matrices lie.

    Args:
        shares: By weight name: the share of positions that are active, over all trails, in each field of a grid laid
            over the matrix; [rows, columns] of 0 .. 1.
        columns: Pictures side by side.
    """
    columns = min(columns, len(shares))
    rows = -(-len(shares) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, max(3.2, 2.5 * rows)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    highest = max(float(each.max()) for each in shares.values())
    image = None
    for place, (name, share) in zip(axes, shares.items(), strict=False):
        image = place.imshow(share, cmap=SEQUENTIAL, vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
        place.set_title(name, fontsize=8, fontweight="normal")
        place.set_xticks([])
        place.set_yticks([])
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
            red, green, blue, _ = image.cmap(image.norm(value))
            color = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK
            axes.text(column, row, form.format(value), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(columns)), [str(each) for each in columns])
    axes.set_yticks(range(len(rows)), rows)
    _no_frame(axes)
    figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    return axes


def _no_frame(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
