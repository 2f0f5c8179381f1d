"""Figure of the scores on tasks: a panel for each, with every arm's mean, SD and seeds."""

from math import ceil, isfinite

import numpy as np
from matplotlib.figure import Figure

from fvl_lightning.comparison.report.figures import COLUMNS, SEED_POINT
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.reporting.style import DPI, INK, clean_axes, colors, score_axis, short_names, wrapped


def task_figure(comparison: Comparison) -> Figure:
    """Draws a panel for every task and every average over tasks; the primary score is named so."""
    evaluation, arms = comparison.evaluation, comparison.arms
    scores = [] if evaluation is None else evaluation.scores()
    columns = max(1, min(COLUMNS, len(scores)))
    rows = max(1, ceil(len(scores) / columns))
    figure = Figure(figsize=(max(5.0, 4.4 * columns), 3.4 * rows), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    names = [wrapped(name) for name in short_names(arms).values()]
    for empty in panels[len(scores) :]:
        empty.set_visible(False)
    for score, axes in zip(scores, panels, strict=False):
        assert evaluation is not None
        drawn: list[float] = []
        for place, (color, arm) in enumerate(zip(colors(arms), arms, strict=True)):
            results = [cell.result for cell in comparison.cells if cell.arm == arm] or [arms[arm]]
            values = [value for value in (result.score(score) for result in results) if isfinite(value)]
            if not values:
                continue
            mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes.errorbar(place, mean, yerr=sd or None, fmt="o", color=color, markersize=8, capsize=3, zorder=3)
            if len(values) > 1:
                axes.plot(place + np.linspace(0.1, 0.3, len(values)), values, **SEED_POINT, zorder=4)
            drawn += [*values, mean - sd, mean + sd]
        primary = ", primary" if score == comparison.metric else ""
        axes.set_title(f"{evaluation.short_title(score)}{primary}", color=INK, fontsize=11, loc="left")
        axes.set_xticks(range(len(names)), names, color=INK)
        axes.set_xlim(-0.5, len(names) - 0.4)
        clean_axes(axes)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(evaluation.metric(score).title.lower(), color=INK)
        score_axis(axes, evaluation.bounds(score), drawn, from_zero=False)
    return figure
