"""Pictures of several runs beside one another."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nt_dist.config.family import Headline
from nt_dist.pictures.style import COLORS, INK, MARKERS, PALE, nth, panels, styled


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
    runs: Sequence[tuple[float, int]], measures: Mapping[str, Sequence[float]], outcomes: Sequence[float], label: str
) -> Figure:
    """Draw what came of the trails' prediction diversity, a panel for each measure of diversity.

    Colour says how long the trails are, the marker how dense; points of one length are joined in the order of density.
    ``runs`` are density and blocks in a trail of each; ``label`` is what the outcomes are called.
    """
    figure, panel = panels(len(measures), width=5.4, height=4.4)
    densities, lengths = (sorted(set(each)) for each in zip(*runs, strict=True))
    markers = {density: nth(MARKERS, number) for number, density in enumerate(densities)}
    for axes, (measure, values) in zip(panel, measures.items(), strict=True):
        for number, length in enumerate(lengths):
            points = zip(runs, values, outcomes, strict=True)
            line = sorted((density, x, y) for (density, layers), x, y in points if layers == length)
            _, x, y = zip(*line, strict=True)
            axes.plot(x, y, color=nth(COLORS, number), linewidth=0.8)
            for density, x, y in line:
                look = {"marker": markers[density], "markersize": 7, "linestyle": "none"}
                axes.plot(x, y, color=nth(COLORS, number), **look)
        axes.set(xlabel=measure, ylabel=label)
    for number, length in enumerate(lengths):
        axes.plot([], [], color=nth(COLORS, number), linewidth=2, label=f"{length} blocks in a trail")
    for density in densities:
        axes.plot([], [], color=PALE, marker=markers[density], linestyle="none", label=f"density {density:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)  # beside the last panel, for all
    return figure
