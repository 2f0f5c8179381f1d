"""Figures of the uncertainty of differences, and of score against cost."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import special

from fvl_lightning.comparison.report.tables import verdict_text
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.comparison.scoring.names import is_task_score
from fvl_lightning.evaluation.metrics.lookup import split_score
from fvl_lightning.reporting.style import (
    DPI,
    GRID,
    INK,
    MUTED,
    clean_axes,
    colors,
    few_ticks,
    legend_above,
    score_axis,
    short_names,
    spanned,
    value_axis,
    wrapped,
)

COSTS = {
    "training_flops": ("training, MFLOPs per sample", 1e6),
    "inference_flops": ("inference, MFLOPs per question", 1e6),
    "parameters": ("parameters, millions", 1e6),
    "image_tokens": ("image tokens in the language model", 1),
}
"""{field of Measurements: (label of the axis of its Pareto panel, what it is divided by)}."""


def interval_figure(statistics: ComparisonStatistics, higher_is_better: bool = True) -> Figure:
    """Draws every arm's difference to the baseline with its intervals, and the band of differences too small to matter.

    The thin line is the interval at the level of the arm's step of Holm's test, so that it excludes zero exactly where
    the verdict says that there is a difference. The axis shows the whole band, however small the differences are.

    Args:
        statistics: the statistics of a comparison.
        higher_is_better: the direction of the metric, which the arrows above the axis name.
    """
    contrasts = [contrast for contrast in statistics.contrasts if isfinite(contrast.estimate)]
    figure = Figure(figsize=(10, 1.9 + 0.5 * max(1, len(contrasts))), dpi=DPI, layout="constrained")
    axes, steps = figure.subplots(), holm_intervals(statistics)
    effect, drawn = statistics.smallest_effect, [-1.15 * statistics.smallest_effect, 1.15 * statistics.smallest_effect]
    axes.axvspan(-effect, effect, color=GRID, zorder=0, label=f"smaller than {effect:g}: does not matter")
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for row, contrast in enumerate(reversed(contrasts)):
        for (low, high), width in ((steps.get(contrast.arm, (nan, nan)), 1.4), (contrast.interval, 4.0)):
            if isfinite(low):
                axes.plot([low, high], [row, row], color=colors([""])[0], linewidth=width, zorder=2)
                drawn += [low, high]
        axes.plot(contrast.estimate, row, "o", color=INK, markersize=6, zorder=3)
        drawn.append(contrast.estimate)
        axes.annotate(
            verdict_text(contrast, statistics.alpha).replace(", ", ",\n"), (1.01, row),
            xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=10,
        )  # fmt: skip
    names = short_names([statistics.baseline, *(contrast.arm for contrast in contrasts)])
    axes.set_yticks(range(len(contrasts)), [wrapped(names[c.arm]) for c in reversed(contrasts)], color=INK)
    axes.set_ylim(-0.6, len(contrasts) - 0.4)
    axes.set_xlim(*spanned(drawn, 0.0))
    axes.xaxis.set_major_locator(few_ticks())
    _name_directions(axes, names[statistics.baseline], higher_is_better)
    axes.set_xlabel(
        f"difference to {names[statistics.baseline]}\nthick: 95 % interval of this difference alone; thin: the "
        "interval that decides, adjusted for all arms (Holm)",
        color=INK,
    )  # fmt: skip
    clean_axes(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", frameon=False, fontsize=10)
    return figure


def _name_directions(axes: Axes, baseline: str, higher_is_better: bool) -> None:
    """Writes above the axes on which side of zero an arm is better, centred on zero."""
    left, right = ("worse", "better") if higher_is_better else ("better", "worse")
    texts = ((f"← {left} than {baseline}  ", "right"), (f"  {right} than {baseline} →", "left"))
    for text, side in texts:
        place: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points"}
        axes.annotate(
            text, (0, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom", color=MUTED, fontsize=10, **place,
            annotation_clip=False,
        )  # fmt: skip


def holm_intervals(statistics: ComparisonStatistics) -> dict[str, tuple[float, float]]:
    """Returns {arm: the interval at the level of its step of Holm's test}; empty where nothing is tested.

    Holm tests the smallest p of m arms at alpha / m, the next at alpha / (m - 1), and so on until one is not rejected,
    whose level the others then share. An interval at that level excludes zero exactly where the test rejects.
    """
    tested = [contrast for contrast in (*statistics.contrasts, *statistics.pairs) if isfinite(contrast.p)]
    if statistics.sensitivity is None:
        return {}
    intervals: dict[str, tuple[float, float]] = {}
    level, rejecting = 0.0, True
    for step, contrast in enumerate(sorted(tested, key=lambda contrast: contrast.p)):
        if rejecting:
            level = statistics.alpha / (len(tested) - step)
            rejecting = contrast.p <= level
        if contrast.against:  # its step counts, but the figure shows the contrasts to the baseline
            continue
        half = float(special.stdtrit(statistics.sensitivity.degrees, 1 - level / 2)) * contrast.standard_error
        intervals[contrast.arm] = contrast.estimate - half, contrast.estimate + half
    return intervals


def pareto_figure(comparison: Comparison) -> Figure:
    """Draws score against operations, parameters and image tokens, one panel for each; a line joins the Pareto front.

    Image tokens have a panel only where arms differ in them.
    """
    metric, on_task = comparison.component, is_task_score(comparison.metric)
    name = comparison.metric_title if on_task else f"{metric.title.lower()}, {split_score(comparison.metric)[1]}"
    measured = {arm: result.score(comparison.metric) for arm, result in comparison.arms.items()}
    scores = {arm: score for arm, score in measured.items() if isfinite(score)}
    spread = {arm.arm: arm.sd if isfinite(arm.sd) else 0.0 for arm in comparison.statistics.arms}
    names = short_names(comparison.arms)
    tokens_differ = len({result.image_tokens for result in comparison.arms.values()}) > 1
    shown = [field for field in COSTS if field != "image_tokens" or tokens_differ]
    figure = Figure(figsize=(4.5 * len(shown), 4.4), dpi=DPI, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(shown), sharey=True)
    for axes, field in zip(panels, shown, strict=True):
        label, unit = COSTS[field]
        costs = {arm: getattr(comparison.arms[arm], field) / unit for arm in scores}
        front = sorted((costs[arm], scores[arm]) for arm in pareto_front(costs, scores, metric.higher_is_better))
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, zorder=1, drawstyle="steps-post")
        for color, arm in zip(colors(comparison.arms), comparison.arms, strict=True):
            if arm in scores:
                axes.errorbar(
                    costs[arm], scores[arm], yerr=spread.get(arm, 0.0) or None, fmt="o", color=color, markersize=8,
                    capsize=3, label=names[arm], zorder=2,
                )  # fmt: skip
        axes.set_xlabel(label, color=INK)
        clean_axes(axes)
        value_axis(axes.xaxis, costs.values())
    ends = [score + sign * spread.get(arm, 0.0) for arm, score in scores.items() for sign in (-1, 1)]
    score_axis(panels[0], comparison.bounds, ends, from_zero=False)
    seeds = "mean and SD over seeds" if len(comparison.seeds) > 1 else "one seed"
    panels[0].set_ylabel(f"{name} ({seeds})", color=INK)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def pareto_front(
    costs: Mapping[str, float], scores: Mapping[str, float], higher_is_better: bool = True
) -> list[str]:
    """Returns the arms that no other one beats: with at least as good a score and at most the cost, and not both equal.

    Args:
        costs: {arm: cost}.
        scores: {arm: score}.
        higher_is_better: the direction of the score.
    """
    gains = {arm: score if higher_is_better else -score for arm, score in scores.items()}
    return [
        arm
        for arm in costs
        if not any(
            costs[other] <= costs[arm] and gains[other] >= gains[arm]
            and (costs[other], gains[other]) != (costs[arm], gains[arm])
            for other in costs
        )
    ]  # fmt: skip
