"""Pictures of several runs beside one another."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nt_dist.config.family import Headline
from nt_dist.pictures.style import COLORS, INK, MARKERS, PALE, nth, panels, styled


class Point(NamedTuple):
    """One run in a picture: the name beside it, its cost, how well its trails and their ensemble predict."""

    name: str
    x: float
    headline: Headline


@styled
def headline_against(costs: Mapping[str, Sequence[Point]]) -> Figure:
    """Draw the headline figure against one cost or several, a panel each, a run being a filled marker (its ensemble).

    Where a run has several trails, a thin line leads to it from the mean of theirs (a short bar): its length is what
    the ensemble gains. Points are by what the cost is called.
    """
    figure, each = panels(len(costs), width=6.4, height=4.6)
    for axes, (label, points) in zip(each, costs.items(), strict=True):
        for number, point in enumerate(points):
            look, mean, ensemble = {"color": nth(COLORS, number)}, point.headline.mean, point.headline.prob
            if len(point.headline.trails) > 1:
                axes.plot([point.x, point.x], [mean, ensemble], linewidth=1.2, **look)
                axes.plot(point.x, mean, marker="_", markersize=11, markeredgewidth=1.6, **look)
            axes.plot(
                point.x, ensemble, marker=nth(MARKERS, number // len(COLORS)), markersize=8, linestyle="none", **look
            )
        axes.set(xlabel=label, ylabel=f"validation {points[0].headline.name}")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.set_xlim(0, 1.38 * max(point.x for point in points))  # room for the names
        axes.margins(y=0.12)
        _name(axes, points)
    figure.supxlabel("marker: ensemble; short bar: mean of its trails", color=PALE, fontsize=9, x=0.01, ha="left")
    return figure


def short(value: float) -> str:
    """A large number in few letters, as "26.1 M"."""
    thousands = min(max(int(math.log10(abs(value) or 1) // 3), 0), 6)
    return f"{value / 1000**thousands:.3g} {' kMGTPE'[thousands]}".rstrip()


def _name(axes: Axes, points: Sequence[Point], size: float = 8.5) -> None:
    """Writes each name beside its point; names that would lie on one another are moved apart, up and down."""
    axes.figure.draw_without_rendering()  # fixes the axes' place on the page
    line, gap = 1.35 * size, 9  # all in points of 1/72 inch, as the text's size is
    places = {point.name: axes.transData.transform((point.x, point.headline.prob)) for point in points}
    placed: list[tuple[float, float, float]] = []  # left, right, middle
    for point in sorted(points, key=lambda point: tuple(places[point.name][::-1])):
        x, y = places[point.name] * 72 / axes.figure.dpi
        left, right, middle = x + gap, x + gap + 0.62 * size * len(point.name), y
        while any(left < end and start < right and abs(middle - other) < line for start, end, other in placed):
            middle += line / 4
        placed.append((left, right, middle))
        arrow = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6} if middle - y > line else None
        look = {"va": "center", "fontsize": size, "color": INK, "arrowprops": arrow, "textcoords": "offset points"}
        axes.annotate(point.name, (point.x, point.headline.prob), (gap, middle - y), **look)


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
    All measures have the same points; ``label`` is what their ``y`` is called.
    """
    figure, each = panels(len(measures), width=5.4, height=4.4)
    points = next(iter(measures.values()))
    lengths, densities = sorted({point.layers for point in points}), sorted({point.density for point in points})
    markers = {density: nth(MARKERS, number) for number, density in enumerate(densities)}
    for axes, (measure, points) in zip(each, measures.items(), strict=True):
        for number, layers in enumerate(lengths):
            line = sorted(point for point in points if point.layers == layers)
            axes.plot(
                [point.x for point in line], [point.y for point in line], color=nth(COLORS, number), linewidth=0.8
            )
            for point in line:
                look = {"marker": markers[point.density], "markersize": 7, "linestyle": "none"}
                axes.plot(point.x, point.y, color=nth(COLORS, number), **look)
        axes.set(xlabel=measure, ylabel=label)
    for number, layers in enumerate(lengths):
        axes.plot([], [], color=nth(COLORS, number), linewidth=2, label=f"{layers} blocks in a trail")
    for density in densities:
        axes.plot([], [], color=PALE, marker=markers[density], linestyle="none", label=f"density {density:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)  # beside the last panel, for all
    return figure
