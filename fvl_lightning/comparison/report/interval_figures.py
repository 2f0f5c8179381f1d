"""Figures of the uncertainty of differences, and of score against cost."""

from collections.abc import Mapping, Sequence
from math import isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvl_lightning.comparison.report.figures import DPI, GRID, INK, MUTED, clean_axes, colors
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.evaluation.metrics.names import metric_of, split_score

COSTS = {
    "training_flops": "training, MFLOPs per sample",
    "inference_flops": "inference, MFLOPs per question",
    "parameters": "parameters, millions",
}
"""{field of Measurements: label of the axis of its Pareto panel}; all of them in millions."""


def interval_figure(statistics: ComparisonStatistics) -> Figure:
    """Draws every arm's difference to the baseline with its intervals, and the band of differences too small to matter.

    Args:
        statistics: the statistics of a comparison.
    """
    contrasts = [contrast for contrast in statistics.contrasts if isfinite(contrast.estimate)]
    figure = Figure(figsize=(9, 1.5 + 0.5 * max(1, len(contrasts))), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    effect = statistics.smallest_effect
    axes.axvspan(-effect, effect, color=GRID, zorder=0, label=f"smaller than {effect:g}: does not matter")
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for row, contrast in enumerate(reversed(contrasts)):
        for (low, high), width in ((contrast.simultaneous, 1.4), (contrast.interval, 4.0)):
            if isfinite(low):
                axes.plot([low, high], [row, row], color=colors([""])[0], linewidth=width, zorder=2)
        axes.plot(contrast.estimate, row, "o", color=INK, markersize=6, zorder=3)
        axes.annotate(
            contrast.verdict, (1.01, row), xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=10
        )
    axes.set_yticks(range(len(contrasts)), [contrast.arm for contrast in reversed(contrasts)], color=INK)
    axes.set_ylim(-0.6, len(contrasts) - 0.4)
    axes.set_xlabel(
        f"difference to {statistics.baseline}; thick: 95 % interval, thin: for all arms at once", color=INK
    )
    clean_axes(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", frameon=False, fontsize=10)
    return figure


def pareto_figure(comparison: Comparison) -> Figure:
    """Draws score against operations and parameters, one panel for each; a line joins the Pareto front."""
    metric, average = metric_of(comparison.metric), split_score(comparison.metric)[1]
    arms = comparison.arms
    scores = {arm: result.score(comparison.metric) for arm, result in arms.items()}
    spread = {arm.arm: arm.sd for arm in comparison.statistics.arms}
    figure = Figure(figsize=(13.5, 4.2), dpi=DPI, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (field, label) in zip(panels, COSTS.items(), strict=True):
        costs = {arm: getattr(result, field) / 1e6 for arm, result in arms.items()}
        front = sorted((costs[arm], scores[arm]) for arm in pareto_front(costs, scores, metric.higher_is_better))
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, zorder=1, drawstyle="steps-post")
        for color, arm in zip(colors(arms), arms, strict=True):
            error = spread.get(arm, float("nan"))
            axes.errorbar(
                costs[arm], scores[arm], yerr=error if isfinite(error) else None, fmt="o", color=color, markersize=8,
                capsize=3, label=arm, zorder=2,
            )  # fmt: skip
        axes.set_xlabel(label, color=INK)
        axes.margins(0.12)
        clean_axes(axes)
    seeds = "mean and SD over seeds" if len(comparison.seeds) > 1 else "one seed"
    panels[0].set_ylabel(f"{metric.title.lower()}, {average} ({seeds})", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)
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
