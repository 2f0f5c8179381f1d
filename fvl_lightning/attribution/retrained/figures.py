"""Figures of retrained subsets: Shapley values with intervals, by kind of question, and interactions of pairs."""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fvl_lightning.attribution.retrained.arms import Size
from fvl_lightning.attribution.retrained.shapley import Array
from fvl_lightning.attribution.retrained.worths import SizeWorths, Worths
from fvl_lightning.comparison.statistics.seed_means import SeedMeans
from fvl_lightning.reporting.style import DPI, INK, MUTED, clean_axes, colors, few_ticks, legend_above

TITLES: dict[Size, str] = {"natural": "own size", "matched": "size of all sources"}
SIZES = tuple(TITLES)
"""Sizes in the order of their colours."""

PANELS: dict[str, Callable[[Worths], SeedMeans]] = {
    "Shapley value": lambda worths: worths.shapley_means,
    "left out of all": lambda worths: worths.left_out,
    "alone, beyond none": lambda worths: worths.alone,
}


def worths_figure(sources: Sequence[str], found: Sequence[SizeWorths]) -> Figure:
    """Draws Shapley value, loss of leaving out and gain alone of each source, a panel for each, with 95 % intervals."""
    figure = Figure(figsize=(10.5, 3.8), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    handles = {}
    for axes, (title, means_of) in zip(panels, PANELS.items(), strict=True):
        for number, each in enumerate(found):
            shift, color = 0.36 * (number - (len(found) - 1) / 2), colors(SIZES)[SIZES.index(each.size)]
            handles[TITLES[each.size]] = _bars(axes, means_of(each.whole), shift, color)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_title(title, color=INK, fontsize=11)
        axes.set_xticks(range(len(sources)), sources)
        clean_axes(axes)
    panels[0].yaxis.set_major_locator(few_ticks())
    panels[0].set_ylabel("gain of the score", color=INK)
    legend_above(figure, [*handles.values()], [*handles])
    return figure


def _bars(axes: Axes, means: SeedMeans, shift: float, color: str) -> Rectangle:
    places = np.arange(len(means.mean)) + shift
    bars = axes.bar(places, np.nan_to_num(means.mean), 0.32, color=color)
    for place, (low, high) in zip(places, means.interval, strict=True):
        if isfinite(low):
            axes.plot([place, place], [low, high], color=INK, linewidth=1.4)
    return bars[0]


def interactions_figure(sources: Sequence[str], found: Sequence[SizeWorths]) -> Figure:
    """Draws the interaction of every pair of sources, a panel for each size; a frame marks an interval without zero."""
    panels = [(TITLES[each.size], each.whole.interactions.mean) for each in found]
    clear = [np.sign(each.whole.interactions.interval).sum(-1) for each in found]
    marks = [np.abs(sign) == 2 for sign in clear]
    figure = Figure(figsize=(1.0 + 4.2 * len(found), 4.0), dpi=DPI, layout="constrained")
    shown = [np.where(np.eye(len(sources), dtype=bool), np.nan, values) for _, values in panels]
    _matrices(figure, [title for title, _ in panels], sources, shown, marks)
    return figure


def kinds_figure(sources: Sequence[str], found: Sequence[SizeWorths]) -> Figure:
    """Draws the Shapley value of each source on each kind of question; a frame marks those that differ from zero."""
    kinds = list(found[0].kinds)
    values = [np.array([each.kinds[kind].shapley_means.mean for kind in kinds]) for each in found]
    marks = [np.array([each.clear_kinds()[kind] for kind in kinds]) for each in found]
    size = (2.0 + (0.9 * len(sources) + 0.6) * len(found), 1.5 + 0.4 * len(kinds))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    _matrices(figure, [TITLES[each.size] for each in found], sources, values, marks, kinds)
    return figure


def _matrices(
    figure: Figure,
    titles: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Array],
    marks: Sequence[Array],
    rows: Sequence[str] | None = None,
) -> None:
    """Draws tables of numbers in one scale of colours, side by side; NaN is left empty."""
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    largest = max((float(np.nanmax(np.abs(table), initial=0.0)) for table in values), default=0.0) or 1.0
    image = None
    for number, axes in enumerate(panels):
        image = axes.imshow(values[number], cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        for (row, column), value in np.ndenumerate(values[number]):
            if isfinite(value):
                pale = abs(value) < 0.6 * largest
                color = INK if pale else "white"
                axes.text(column, row, f"{value:+.3f}", ha="center", va="center", color=color, fontsize=8)
            if marks[number][row, column]:
                place = (column - 0.47, row - 0.46)
                axes.add_patch(Rectangle(place, 0.94, 0.92, fill=False, edgecolor=INK, linewidth=1.6))
        names = columns if rows is None else rows
        axes.set_xticks(range(len(columns)), columns, rotation=20)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names))
        axes.set_title(titles[number], color=INK, fontsize=11)
        axes.tick_params(length=0, labelcolor=INK, labelsize=9)
        axes.spines[:].set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=panels.tolist(), shrink=0.8).ax.tick_params(labelsize=8)
