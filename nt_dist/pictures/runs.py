"""Pictures of several runs beside one another."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nt_dist.config.family import Headline
from nt_dist.pictures.style import COLORS, INK, MARKERS, PALE, panels, styled

_SUFFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Point(NamedTuple):
    """One run in a picture: the name beside it, its cost, how well its trails and their ensemble predict."""

    name: str
    x: float
    headline: Headline


@styled
def headline_against(costs: Sequence[tuple[str, Sequence[Point]]]) -> Figure:
    """Draw the headline figure against one cost or several, a panel each, a run being a filled marker (its ensemble).

    Where a run has several trails, a thin line leads to it from the mean of theirs (a short bar): its length is what
    the ensemble gains.

    Args:
        costs: What a panel's cost is called, and the runs' points.
    """
    figure, each = panels(len(costs), width=6.4, height=4.6)
    for axes, (label, points) in zip(each, costs, strict=True):
        for number, point in enumerate(points):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]
            mean, ensemble = point.headline.mean, point.headline.prob
            if len(point.headline.trails) > 1:
                axes.plot([point.x, point.x], [mean, ensemble], color=color, linewidth=1.2)
                axes.plot(point.x, mean, color=color, marker="_", markersize=11, markeredgewidth=1.6)
            axes.plot(point.x, ensemble, color=color, marker=marker, markersize=8, linestyle="none")
        axes.set(xlabel=label, ylabel=f"validation {points[0].headline.name}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlim(0, 1.38 * max(point.x for point in points))  # room for the names
        axes.margins(y=0.12)
        _label(axes, [(point.name, point.x, point.headline.prob) for point in points])
    figure.supxlabel("marker: ensemble; short bar: mean of its trails", color=PALE, fontsize=9, x=0.01, ha="left")
    return figure


def short(value: float) -> str:
    """A large number in few letters, as "26.1 M"."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.3g}"


def _label(axes: Axes, points: Sequence[tuple[str, float, float]], size: float = 8.5) -> None:
    """Writes each name beside its point; names that would lie on one another are moved apart, up and down."""
    axes.figure.draw_without_rendering()  # fixes the axes' place on the page
    pixels = {name: axes.transData.transform((x, y)) for name, x, y in points}
    line = size * 1.35 * axes.figure.dpi / 72
    width = size * 0.62 * axes.figure.dpi / 72
    placed: list[tuple[float, float, float]] = []  # left, right, middle
    for name, (x, y) in sorted(pixels.items(), key=lambda item: (item[1][1], item[1][0])):
        left, right = x + 9, x + 9 + width * len(name)
        middle = y
        while any(left < end and start < right and abs(middle - m) < line for start, end, m in placed):
            middle += line / 4
        placed.append((left, right, middle))
        offset = (9 * 72 / axes.figure.dpi, (middle - y) * 72 / axes.figure.dpi)
        arrow = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6} if middle - y > line else None
        axes.annotate(
            name,
            axes.transData.inverted().transform((x, y)),
            offset,
            textcoords="offset points",
            va="center",
            fontsize=size,
            color=INK,
            arrowprops=arrow,
        )


class StudyPoint(NamedTuple):
    """One point of the diversity study: density, blocks in a trail, how differently its trails predict, the outcome."""

    density: float
    layers: int
    x: float
    y: float


@styled
def against_diversity(measures: Mapping[str, Sequence[StudyPoint]], label: str) -> Figure:
    """Draw what came of the trails' prediction diversity, a panel for each measure of diversity.

    Colour says how long the trails are, the marker how dense; points of one length are joined in the order of density.

    Args:
        measures: Points by what the measure is called.
        label: What the points' ``y`` is called.
    """
    figure, each = panels(len(measures), width=5.4, height=4.4)
    for axes, (measure, points) in zip(each, measures.items(), strict=True):
        densities = sorted({point.density for point in points})
        for number, layers in enumerate(sorted({point.layers for point in points})):
            color = COLORS[number % len(COLORS)]
            line = sorted((point for point in points if point.layers == layers), key=lambda point: point.density)
            axes.plot([point.x for point in line], [point.y for point in line], color=color, linewidth=0.8)
            for point in line:
                marker = MARKERS[densities.index(point.density) % len(MARKERS)]
                axes.plot(point.x, point.y, color=color, marker=marker, markersize=7, linestyle="none")
        axes.set(xlabel=measure, ylabel=label)
    _key(each[-1], points)
    return figure


def _key(axes: Axes, points: Sequence[StudyPoint]) -> None:
    """The legend of the study: a line a length, a grey marker a density."""
    lengths, densities = sorted({point.layers for point in points}), sorted({point.density for point in points})

    looks = [
        {"color": COLORS[number % len(COLORS)], "linewidth": 2, "label": f"{layers} blocks in a trail"}
        for number, layers in enumerate(lengths)
    ]
    looks += [
        {"color": PALE, "marker": MARKERS[number % len(MARKERS)], "linestyle": "none", "label": f"density {density:g}"}
        for number, density in enumerate(densities)
    ]
    handles = [axes.plot([], [], **look)[0] for look in looks]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
