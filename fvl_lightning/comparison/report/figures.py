"""Figures of a comparison: scores by kind of question, losses and source weights.

Every function returns a matplotlib Figure of its own (without pyplot, so nothing is shared between them). style.py has
the rules of their axes.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from fvl_lightning.comparison.result_files.cell import Measurements
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.scoring.names import score_of_split
from fvl_lightning.evaluation.metrics.lookup import metric_of
from fvl_lightning.reporting.style import (
    DPI,
    INK,
    MUTED,
    clean_axes,
    colors,
    legend_above,
    score_axis,
    short_names,
    step_axis,
    value_axis,
)

Curve = Sequence[tuple[int, float]]
"""(step, value), in order."""


@dataclass(frozen=True)
class Losses:
    """The losses of a stage of an arm, in nats per supervised token: one curve per seed."""

    training: Sequence[Curve]
    validation: Sequence[Curve] = ()


COLUMNS = 3
"""Panels side by side."""
SMOOTHED_POINTS = 20
"""A running mean of a curve takes one part in so many of its points."""
SEED_POINT: dict[str, Any] = {
    "marker": "o", "linestyle": "none", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "#222222",
    "markeredgewidth": 0.6,
}  # fmt: skip
"""The mark of a single seed."""
LOG_RANGE = 4
"""Losses that differ by at least this factor are drawn on a logarithmic axis."""


def accuracy_figure(comparison: Comparison) -> Figure:
    """Draws the score of every arm by kind of question, with the prior; on the right the average and its controls.

    A bar is the mean over seeds; with several seeds it has a whisker of one SD and a point for every seed.

    Args:
        comparison: its score may be of any metric, not only of accuracy.
    """
    arms, metric = comparison.arms, metric_of(score_of_split(comparison.metric))
    name, first = comparison.split_metric, next(iter(arms.values()))
    kinds = list(first.scores[name].by_kind)
    figure = Figure(figsize=(12 if len(arms) <= 4 else 15, 4.6), dpi=DPI, layout="constrained")
    by_kind, controls = figure.subplots(1, 2, sharey=True, width_ratios=[max(len(kinds), 3), 4.4])
    by_seed: dict[str, list[Measurements]] = {
        arm: [cell.result for cell in comparison.cells if cell.arm == arm] or [arms[arm]] for arm in arms
    }

    def table(values: Callable[[Measurements], list[float]]) -> dict[str, NDArray[Any]]:
        return {arm: np.array([values(result) for result in results], dtype=float) for arm, results in by_seed.items()}

    asked = table(lambda result: [result.scores[name].by_kind.get(kind, nan) for kind in kinds])
    shown = table(lambda result: [result.scores[name].macro, result.image_shuffled.macro, result.image_zeroed.macro])
    drawn = _grouped_bars(by_kind, kinds, asked)
    drawn += _grouped_bars(controls, ["real images", "shuffled", "zeroed"], shown)
    for position, kind in enumerate(kinds):
        prior = first.prior.by_kind.get(kind)
        if prior is not None and isfinite(prior):
            by_kind.hlines(prior, position - 0.46, position + 0.46, color=INK, linewidth=1.6, zorder=6)
            drawn.append(prior)
    by_kind.set_title("by kind of question", color=INK, fontsize=11, loc="left")
    by_kind.set_ylabel(f"{metric.title.lower()} ({metric.criterion})", color=INK)
    line = controls.axhline(first.prior.macro, color=INK, linewidth=1.6, zorder=6)
    controls.set_title("macro average over kinds, by image", color=INK, fontsize=11, loc="left")
    score_axis(by_kind, metric.bounds, [*drawn, first.prior.macro], from_zero=True)
    handles, labels = controls.get_legend_handles_labels()
    counts = list(map(len, by_seed.values()))
    if max(counts) > 1:
        handles += [Line2D([], [], color=INK, linewidth=1.2), _seed_point()]
        labels += [f"SD over {_seeds_text(counts)}", "one seed"]
    legend_above(figure, [*handles, line], [*labels, "prior: the most frequent answer"])
    return figure


def loss_figure(curves: Mapping[str, Mapping[str, Losses]]) -> Figure:
    """Draws the losses, one panel per stage: training as a line with a band over seeds, validation dashed.

    Args:
        curves: {arm: {stage: losses}}.
    """
    stages = list(dict.fromkeys(stage for by_stage in curves.values() for stage in by_stage))
    figure, panels = _panels(stages, height=3.8)
    found = [losses for by_stage in curves.values() for losses in by_stage.values()]
    for stage, axes in zip(stages, panels, strict=True):
        drawn: list[float] = []
        for color, (arm, by_stage) in zip(colors(curves), curves.items(), strict=True):
            losses = by_stage.get(stage, Losses([]))
            drawn += _draw_seeds(axes, losses.training, color, short_names(curves)[arm])
            steps, mean, _, _ = over_seeds(losses.validation)
            axes.plot(steps, mean, color=color, linewidth=1.2, linestyle=(0, (3, 2)), marker="o", markersize=3)
            drawn += mean
        _loss_axis(axes, drawn)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("loss (nats per token)", color=INK)
    if panels:
        handles, labels = panels[0].get_legend_handles_labels()
        counts = [len(losses.training) for losses in found]
        several = max(counts, default=1) > 1
        handles.append(Line2D([], [], color=MUTED, linewidth=2))
        labels.append(f"training, mean over {_seeds_text(counts)}" if several else "training")
        if several:
            handles.append(Patch(color=MUTED, alpha=0.25))
            labels.append("band: lowest to highest seed")
        if any(losses.validation for losses in found):
            handles.append(Line2D([], [], color=MUTED, linestyle=(0, (3, 2)), marker="o", markersize=3))
            labels.append("validation, mean" if several else "validation")
        legend_above(figure, handles, labels)
    return figure


def source_weight_figure(curves: Mapping[str, Mapping[str, Curve | Sequence[Curve]]]) -> Figure:
    """Draws the weight of each source of features in the fusion's output during training, one panel per arm.

    Args:
        curves: {arm: {source: [(step, source weight in [0, 1])], or a list of such curves, one per seed}}.
    """
    figure, panels = _panels(list(short_names(curves).values()), height=3.6, share_y=True)
    sources = list(dict.fromkeys(source for by_source in curves.values() for source in by_source))
    by_name = dict(zip(sources, colors(sources), strict=True))
    seeds = 1
    for by_source, axes in zip(curves.values(), panels, strict=True):
        for source, given in by_source.items():
            of_seeds: Any = [given] if given and isinstance(given[0][0], int) else given
            seeds = max(seeds, len(of_seeds))
            _draw_seeds(axes, of_seeds, by_name[source], source)
        axes.axhline(1 / max(len(by_source), 1), color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="equal weights")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in panels[::COLUMNS]:
        axes.set_ylim(bottom=0)  # after all curves are drawn, because it ends the scaling of the shared axis
        axes.set_ylabel("source weight in the fused features", color=INK)
    if panels:
        handles, labels = panels[0].get_legend_handles_labels()
        if seeds > 1:
            handles.append(Patch(color=MUTED, alpha=0.25))
            labels.append(f"band: lowest to highest of {seeds} seeds")
        legend_above(figure, handles, labels)
    return figure


def _panels(titles: Sequence[str], height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one panel per title, up to COLUMNS in a row; `height` of a row in inches."""
    columns = max(1, min(COLUMNS, len(titles)))
    rows = max(1, ceil(len(titles) / columns))
    figure = Figure(figsize=(max(5.0, 4.4 * columns), height * rows), dpi=DPI, layout="constrained")
    if not titles:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color=MUTED)
        return figure, []
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for empty in grid[len(titles) :]:
        empty.set_visible(False)
    panels = grid[: len(titles)]
    for title, axes in zip(titles, panels, strict=True):
        axes.set_title(title, color=INK, fontsize=11, loc="left")
        clean_axes(axes)
        step_axis(axes)
    return figure, panels


def over_seeds(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Returns the steps that all curves have, with the mean, the lowest and the highest of their values there."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    values = [[curve[step] for curve in by_step] for step in steps]
    return steps, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]


def _draw_seeds(axes: Axes, curves: Sequence[Curve], color: str, label: str) -> list[float]:
    """Draws one curve as logged, thin, with its running mean; or the running mean of several, with their band.

    Returns:
        All values drawn.
    """
    if len(curves) == 1 and len(curves[0]) >= 2 * SMOOTHED_POINTS:
        axes.plot(*zip(*curves[0], strict=True), color=color, linewidth=1.0, alpha=0.35)
    steps, mean, low, high = over_seeds([_running_mean(curve) for curve in curves])
    if len(curves) > 1:
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color=color, linewidth=2.0, label=label)
    return [*low, *high]


def _running_mean(curve: Curve) -> list[tuple[int, float]]:
    """Returns the mean over a twentieth of the points around each; the same curve where there are few."""
    values, half = [value for _, value in curve], len(curve) // SMOOTHED_POINTS // 2
    return [
        (step, float(np.mean(values[max(0, i - half) : i + half + 1]))) for i, (step, _) in enumerate(curve)
    ]


def _loss_axis(axes: Axes, values: Sequence[float]) -> None:
    """Scales the axis of losses: logarithmic where they differ by a factor of LOG_RANGE or more."""
    finite = [value for value in values if isfinite(value)]
    if finite and 0 < LOG_RANGE * min(finite) <= max(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        value_axis(axes.yaxis, finite)


def _grouped_bars(axes: Axes, groups: Sequence[str], values: Mapping[str, NDArray[Any]]) -> list[float]:
    """Draws one group of bars per entry of `groups`, with one bar of each series: the mean over seeds.

    Args:
        values: {series: [seeds, groups]}; NaN where there is no value.

    Returns:
        All values drawn.
    """
    width, labels = 0.8 / max(len(values), 1), short_names(values)
    drawn: list[float] = []
    for number, (color, (name, table)) in enumerate(zip(colors(values), values.items(), strict=True)):
        positions = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * width
        known = [column[np.isfinite(column)] for column in table.T]
        heights = [float(column.mean()) if len(column) else nan for column in known]
        axes.bar(positions, heights, width * 0.92, color=color, label=labels[name], zorder=3)
        for position, height, column in zip(positions, heights, known, strict=True):
            if len(column) > 1:
                sd = float(column.std(ddof=1))
                axes.plot([position] * 2, [height - sd, height + sd], color=INK, linewidth=1.2, zorder=4)
                spread = np.linspace(-0.28, 0.28, len(column)) * width
                axes.plot(position + spread, column, **SEED_POINT, zorder=5)
                drawn += [height - sd if height - sd < 0 else height, height + sd, *column.tolist()]
        drawn += heights
    names = [textwrap.fill(group.replace("_", " "), 10, break_long_words=False) for group in groups]
    axes.set_xticks(range(len(groups)), names, color=INK)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    clean_axes(axes)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
    return drawn


def _seeds_text(counts: Sequence[int]) -> str:
    """Returns "3 seeds", or "seeds" where arms have different numbers of them."""
    return f"{counts[0]} seeds" if len(set(counts)) == 1 else "seeds"


def _seed_point() -> Line2D:
    return Line2D([], [], **SEED_POINT)
