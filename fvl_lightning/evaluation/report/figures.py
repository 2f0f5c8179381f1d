"""Figures of an evaluation: scores with intervals, scores on corrupted images, and slices."""

import textwrap
from collections.abc import Sequence
from math import ceil, isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fvl_lightning.evaluation.report.assessment import OF_PRIOR, TaskAssessment
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS, STRENGTHS
from fvl_lightning.evaluation.robustness.slices import SliceScores
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.style import (
    DPI,
    INK,
    MUTED,
    clean_axes,
    colors,
    legend_above,
    score_axis,
    short_names,
    wrapped,
)

COLUMNS = 3
"""Panels side by side."""
LABEL_CHARACTERS = 32
"""Characters of a line of an axis' label."""
GROUP_WIDTH = 0.7
"""Share of a group's width that its points take."""
MARKS = {"blind": "x", "shuffled": "s", "paraphrase": "^"}
"""Markers of controls; all paraphrases share one."""


def score_figure(tasks: Sequence[TaskAssessment]) -> Figure:
    """Draws the score of every model on every task with its interval, its controls, and the answer prior."""
    models = list(dict.fromkeys(model for task in tasks for model in task.statistics.scores))
    names, palette = short_names(models), dict(zip(models, colors(models), strict=True))
    figure, panels = _panels([task.title for task in tasks], width=max(3.6, 0.45 * len(models) + 1.6), height=3.6)
    shown: set[str] = set()
    for task, axes in zip(tasks, panels, strict=True):
        own = task.statistics.scores
        drawn = [_point(axes, models.index(model), found, palette[model]) for model, found in own.items()]
        for row in task.varied:
            mark = MARKS.get(row.variation.partition("-")[0]) if row.corruption is None else None
            if mark:
                shown.add(row.variation.partition("-")[0])
                place, face = models.index(row.model), "none" if mark != "x" else palette[row.model]
                axes.scatter(place + 0.22, row.score.value, marker=mark, s=34, facecolor=face,
                             edgecolor=None if mark == "x" else palette[row.model], zorder=4)  # fmt: skip
                drawn.append([row.score.value])
        axes.axhline(task.prior.value, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), zorder=2)
        axes.set_xlim(-0.6, len(models) - 0.4)
        axes.set_xticks([])
        axes.set_ylabel(textwrap.fill(task.described, LABEL_CHARACTERS), color=INK)
        score_axis(axes, task.bounds, [value for values in drawn for value in values] + [task.prior.value], False)
    marks = [MARKS[name] for name in sorted(shown)]
    handles = [
        *(Line2D([], [], color=palette[model], marker="o", linewidth=1.6) for model in models),
        Line2D([], [], color=MUTED, linewidth=1.6),
        Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (3, 2))),
        *(Line2D([], [], color=MUTED, marker=mark, linestyle="none", fillstyle="none") for mark in marks),
    ]
    legend_above(figure, handles, [*names.values(), "95 % interval over new questions", OF_PRIOR, *sorted(shown)])
    return figure


def corruption_figure(task: TaskAssessment) -> Figure | None:
    """Draws every model's score against the strength of each corruption, with bands; None without corruptions."""
    found = {(row.model, *row.corruption): row.score for row in task.varied if row.corruption}
    kinds = [name for name in CORRUPTIONS if any(key[1] == name for key in found)]
    if not kinds:
        return None
    models = list(task.statistics.scores)
    names = short_names(models)
    figure, panels = _panels([CORRUPTIONS[name].title for name in kinds], width=4.0, height=3.0, share_y=True)
    drawn = [task.prior.value]
    for kind, axes in zip(kinds, panels, strict=True):
        for color, model in zip(colors(models), models, strict=True):
            curve = {0: task.statistics.scores[model]}
            curve |= {s: found[model, kind, s] for s in STRENGTHS if (model, kind, s) in found}
            low, high = zip(*(estimate.interval for estimate in curve.values()), strict=True)
            values = [estimate.value for estimate in curve.values()]
            axes.fill_between(list(curve), low, high, color=color, alpha=0.18, linewidth=0)
            axes.plot(list(curve), values, color=color, marker="o", markersize=4, linewidth=1.8, label=names[model])
            drawn += [*low, *high, *values]
        axes.axhline(task.prior.value, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), label=OF_PRIOR)
        axes.set_xticks([0, *STRENGTHS], ["none", *map(str, STRENGTHS)])
    for axes in panels[-COLUMNS:]:
        axes.set_xlabel("strength", color=INK)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel(textwrap.fill(task.described, LABEL_CHARACTERS), color=INK)
    score_axis(panels[0], task.bounds, drawn, from_zero=False)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def slice_figure(task: TaskAssessment) -> Figure | None:
    """Draws the score of every model by the values of each field, with intervals; None without slices."""
    fields = list(dict.fromkeys(found.field for found in task.slices))
    if not fields:
        return None
    by_field = {field: [found for found in task.slices if found.field == field] for field in fields}
    places = [max(3, len(found[0].groups)) for found in by_field.values()]
    figure = Figure(figsize=(max(6.0, min(16.0, 1.1 * max(places) + 1.5)), 3.2 * len(fields) + 0.4), dpi=DPI,
                    layout="constrained")  # fmt: skip
    panels: Sequence[Axes] = list(figure.subplots(len(fields), 1, squeeze=False).flat)
    for axes, (field, models) in zip(panels, by_field.items(), strict=True):
        _draw_slices(axes, task, field, models)
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (3, 2))))
    legend_above(figure, handles, [*labels, "all questions with the field"])
    return figure


def _draw_slices(axes: Axes, task: TaskAssessment, field: str, models: Sequence[SliceScores]) -> None:
    names = short_names([found.model for found in models])
    drawn: list[float] = []
    for number, (color, found) in enumerate(zip(colors([found.model for found in models]), models, strict=True)):
        shift = (number - (len(models) - 1) / 2) * GROUP_WIDTH / max(len(models), 1)
        for place, group in enumerate(found.groups):
            drawn += _point(axes, place + shift, group.score, color, names[found.model] if place == 0 else None)
        axes.axhline(found.overall.value, color=color, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1)
        drawn.append(found.overall.value)
    texts = [f"{wrapped(group.value)}\nn = {group.questions:,}" for group in models[0].groups]
    axes.set_xticks(range(len(texts)), texts, color=INK)
    axes.set_xlim(-0.6, len(texts) - 0.4)
    axes.set_title(f"{task.title}, by {field}", color=INK, fontsize=11, loc="left")
    axes.set_ylabel(textwrap.fill(task.described, LABEL_CHARACTERS), color=INK)
    clean_axes(axes)
    axes.tick_params(axis="x", length=0)
    score_axis(axes, task.bounds, drawn, from_zero=False)


def _point(axes: Axes, place: float, found: Estimate, color: str, label: str | None = None) -> list[float]:
    """Draws a score with its interval, and returns the artists."""
    low, high = found.interval
    if isfinite(low):
        axes.plot([place, place], [low, high], color=color, linewidth=1.8, zorder=3, solid_capstyle="butt")
    axes.plot(place, found.value, "o", color=color, markersize=6, zorder=4, label=label)
    return [value for value in (found.value, low, high) if isfinite(value)]


def _panels(titles: Sequence[str], width: float, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one panel per title, COLUMNS in a row; width and height of a panel in inches."""
    columns, rows = min(COLUMNS, len(titles)), ceil(len(titles) / COLUMNS)
    size = max(6.0, width * columns), height * rows + 0.4
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for empty in grid[len(titles) :]:
        empty.set_visible(False)
    for title, axes in zip(titles, grid, strict=False):
        axes.set_title(title, color=INK, fontsize=11, loc="left")
        clean_axes(axes)
        axes.tick_params(axis="x", length=0)
    return figure, grid[: len(titles)]
