"""Figures of how sure the differences of a comparison are, and of score against price."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvl_lightning.comparison.report.figures import DPI, GRID, INK, MUTED, clean_axes, colors

PRICES = {
    "training_flops": "training, MFLOPs per sample",
    "inference_flops": "inference, MFLOPs per question",
    "parameters": "parameters, millions",
}
"""What a Pareto panel has on its axis; all of them in millions."""


def interval_figure(statistics: Mapping[str, Any]) -> Figure:
    """Every arm's difference to the baseline with its interval, and the band of differences that do not matter.

    Args:
        statistics: as conclusions.conclusions returns them.
    """
    contrasts = [contrast for contrast in statistics["contrasts"] if isfinite(contrast["estimate"])]
    figure = Figure(figsize=(9, 1.5 + 0.5 * max(1, len(contrasts))), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    effect = statistics["smallest_effect"]
    axes.axvspan(-effect, effect, color=GRID, zorder=0, label=f"smaller than {effect:g}: does not matter")
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    for place, contrast in enumerate(reversed(contrasts)):
        for name, width in (("simultaneous", 1.4), ("interval", 4.0)):
            low, high = contrast[name]
            if isfinite(low):
                axes.plot([low, high], [place, place], color=colors([""])[0], linewidth=width, zorder=2)
        axes.plot(contrast["estimate"], place, "o", color=INK, markersize=6, zorder=3)
        axes.annotate(
            contrast["verdict"], (1.01, place), xycoords=("axes fraction", "data"), va="center", color=INK, fontsize=10
        )
    axes.set_yticks(range(len(contrasts)), [contrast["arm"] for contrast in reversed(contrasts)], color=INK)
    axes.set_ylim(-0.6, len(contrasts) - 0.4)
    axes.set_xlabel(
        f"difference to {statistics['baseline']}; thick: 95 % interval, thin: for all arms at once", color=INK
    )
    clean_axes(axes)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", frameon=False, fontsize=10)
    return figure


def pareto_figure(comparison: Mapping[str, Any]) -> Figure:
    """Score against operations and parameters, one panel per price; a line joins what nothing beats in both.

    Args:
        comparison: as written to comparison.json (see report.write_report).
    """
    average = comparison["metric"].rpartition("/")[2]
    arms = comparison["arms"]
    scores = {arm: entry["accuracy"][average] for arm, entry in arms.items()}
    spread = {arm["arm"]: arm["sd"] for arm in comparison["statistics"]["arms"]}
    figure = Figure(figsize=(13.5, 4.2), dpi=DPI, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(PRICES), sharey=True)
    for axes, (field, words) in zip(panels, PRICES.items(), strict=True):
        prices = {arm: entry[field] / 1e6 for arm, entry in arms.items()}
        front = sorted((prices[arm], scores[arm]) for arm in pareto_front(prices, scores))
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, zorder=1, drawstyle="steps-post")
        for color, arm in zip(colors(arms), arms, strict=True):
            error = spread.get(arm, float("nan"))
            axes.errorbar(
                prices[arm], scores[arm], yerr=error if isfinite(error) else None, fmt="o", color=color, markersize=8,
                capsize=3, label=arm, zorder=2,
            )  # fmt: skip
        axes.set_xlabel(words, color=INK)
        axes.margins(0.12)
        clean_axes(axes)
    seeds = "mean and SD over seeds" if len(comparison["seeds"]) > 1 else "one seed"
    panels[0].set_ylabel(f"accuracy, {average} ({seeds})", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)
    return figure


def pareto_front(prices: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    """The arms that no other beats: none scores as much for less, or more for as little."""
    return [
        arm
        for arm in prices
        if not any(
            prices[other] <= prices[arm] and scores[other] >= scores[arm]
            and (prices[other], scores[other]) != (prices[arm], scores[arm])
            for other in prices
        )
    ]  # fmt: skip
