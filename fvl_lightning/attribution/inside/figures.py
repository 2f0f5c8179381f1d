"""Figures of weights and shares of sources: bars with intervals, curves over training, weights by kind of question."""

from collections.abc import Mapping, Sequence
from math import isfinite

from matplotlib.figure import Figure

from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.style import DPI, INK, MUTED, clean_axes, colors, legend_above, step_axis


def bars_figure(columns: Mapping[str, Mapping[str, Estimate]], label: str) -> Figure:
    """Draws {name: {source: estimate in [0, 1]}} as bars with intervals, side by side for each source."""
    sources = list(next(iter(columns.values())))
    figure = Figure(figsize=(max(5.0, 1.2 * len(sources) + 2), 3.4), dpi=DPI, layout="constrained")
    axes, width = figure.subplots(), 0.7 / len(columns)
    for number, (color, table) in enumerate(zip(colors(list(columns)), columns.values(), strict=True)):
        places = [place + width * (number - (len(columns) - 1) / 2) for place in range(len(sources))]
        axes.bar(places, [table[source].value for source in sources], width * 0.92, color=color)
        for place, source in zip(places, sources, strict=True):
            low, high = table[source].interval
            if isfinite(low):
                axes.plot([place, place], [low, high], color=INK, linewidth=1.2)
    axes.axhline(1 / len(sources), color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    axes.set_xticks(range(len(sources)), sources)
    axes.set_ylabel(label, color=INK)
    clean_axes(axes)
    legend_above(figure, [bars[0] for bars in axes.containers], list(columns))
    return figure


def training_figure(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draws the weight of each source {source: [(step, weight)]} over training."""
    figure = Figure(figsize=(7, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lines = [
        axes.plot([step for step, _ in curve], [weight for _, weight in curve], color=color, linewidth=1.6)[0]
        for color, curve in zip(colors(list(curves)), curves.values(), strict=True)
    ]
    axes.set_ylim(0, max(1.05 * max(weight for curve in curves.values() for _, weight in curve), 0.1))
    axes.set_ylabel("weight", color=INK)
    step_axis(axes)
    clean_axes(axes)
    legend_above(figure, lines, list(curves))
    return figure


def kinds_figure_of_weights(by_kind: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Draws {kind: {source: weight}} as stacked bars, one for each kind of question."""
    kinds, sources = list(by_kind), list(next(iter(by_kind.values())))
    figure = Figure(figsize=(7, 0.36 * len(kinds) + 1.3), dpi=DPI, layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(kinds)
    for color, source in zip(colors(sources), sources, strict=True):
        weights = [by_kind[kind][source].value for kind in kinds]
        axes.barh(range(len(kinds)), weights, left=left, height=0.7, color=color)
        for row, (start, weight) in enumerate(zip(left, weights, strict=True)):
            if weight > 0.06:
                axes.text(start + weight / 2, row, f"{weight:.2f}", ha="center", va="center", fontsize=8, color="white")
        left = [start + weight for start, weight in zip(left, weights, strict=True)]
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlabel("weight", color=INK)
    clean_axes(axes)
    axes.grid(visible=False)
    legend_above(figure, [bars[0] for bars in axes.containers], sources)
    return figure
