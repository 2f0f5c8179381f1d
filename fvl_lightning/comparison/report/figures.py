"""Figures of a comparison: scores by kind of question, losses, source weights, and a sheet of answers.

Every function returns a matplotlib Figure of its own (without pyplot, so nothing is shared between them). The colours
are those of Okabe and Ito, which colour-blind readers can distinguish; right and wrong are also marked by a sign.
"""

import textwrap
from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, TextArea, VPacker
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores
from fvl_lightning.evaluation.metrics.names import DEFAULT_METRIC, build_metric, metric_of, split_score

Curve = Sequence[tuple[int, float]]
"""(step, value), in order."""


class SampleAnswers(TypedDict):
    """A question on the sheet of sample answers."""

    image: Path | str | NDArray[Any]
    """File or pixels [H, W, 3] (uint8, or in [0, 1])."""
    question: str
    truth: str
    answers: dict[str, str]
    """{arm: its answer}."""


PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
RIGHT, WRONG = "#00795A", "#C24A00"
INK, MUTED, GRID = "#222222", "#666666", "#E3E3E3"
DPI = 150
COLUMNS = 3
"""Panels or samples side by side."""
CARD_WIDTH = 4.2
"""Inches of one sample on the sheet."""
IMAGE_WIDTH = 1.45
"""Inches of its image."""
LINE_CHARACTERS = 27
"""Characters in a line of a sample's text."""


def accuracy_figure(comparison: Comparison) -> Figure:
    """Draws the score of every arm by kind of question, with the prior; on the right the average and its controls.

    Args:
        comparison: its score may be of any metric, not only of accuracy.
    """
    arms, metric = comparison.arms, metric_of(comparison.metric)
    name, first = split_score(comparison.metric)[0], next(iter(arms.values()))
    kinds = list(first.scores[name].by_kind)
    figure = Figure(figsize=(12, 4.4), dpi=DPI, layout="constrained")
    by_kind, controls = figure.subplots(1, 2, sharey=True, width_ratios=[max(len(kinds), 3), 4.4])

    _grouped_bars(by_kind, kinds, {arm: _values(result.scores[name], kinds) for arm, result in arms.items()})
    for position, kind in enumerate(kinds):
        prior = first.prior.by_kind.get(kind)
        if prior is not None:
            by_kind.hlines(prior, position - 0.46, position + 0.46, color=INK, linewidth=1.6, zorder=4)
    by_kind.set_title("by kind of question", color=INK, fontsize=11, loc="left")
    by_kind.set_ylabel(f"{metric.title.lower()} ({metric.criterion})", color=INK)

    macro = {
        arm: [result.scores[name].macro, result.image_shuffled.macro, result.image_zeroed.macro]
        for arm, result in arms.items()
    }
    _grouped_bars(controls, ["real images", "shuffled", "zeroed"], macro)
    # Narrower bars have no room for a number; the report's tables have them all.
    for bars in controls.containers if len(arms) <= 4 else ():
        # In front of the line of the prior, which would strike them through.
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}
        number = "{:.0%}" if _is_fraction(metric) else "{:.3g}"
        controls.bar_label(bars, fmt=number, fontsize=8, color=INK, padding=1.5, zorder=5, bbox=paper)
    line = controls.axhline(first.prior.macro, color=INK, linewidth=1.6, zorder=4)
    controls.set_title("macro average over kinds, by image", color=INK, fontsize=11, loc="left")
    low, high = metric.bounds
    if isfinite(low) and isfinite(high):
        by_kind.set_ylim(low, high + 0.05 * (high - low))
    if _is_fraction(metric):
        by_kind.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    handles, labels = controls.get_legend_handles_labels()
    _legend_above(figure, [*handles, line], [*labels, "prior: the most frequent answer"])
    return figure


def loss_figure(curves: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draws the training losses, one panel per stage.

    Args:
        curves: {arm: {stage: [(step, loss in nats per supervised token)]}}.
    """
    stages = list(dict.fromkeys(stage for by_stage in curves.values() for stage in by_stage))
    figure, panels = _panels(stages, height=3.8)
    for stage, axes in zip(stages, panels, strict=True):
        for color, (arm, by_stage) in zip(colors(curves), curves.items(), strict=True):
            _draw_curve(axes, by_stage.get(stage, ()), color, arm)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("training loss (nats per token)", color=INK)
    if panels:
        _legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def source_weight_figure(curves: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draws the weight of each source of features in the fusion's output during training, one panel per arm.

    Args:
        curves: {arm: {source: [(step, source weight in [0, 1])]}}.
    """
    figure, panels = _panels(list(curves), height=3.6, share_y=True)
    sources = list(dict.fromkeys(source for by_source in curves.values() for source in by_source))
    by_name = dict(zip(sources, colors(sources), strict=True))
    for by_source, axes in zip(curves.values(), panels, strict=True):
        for source, curve in by_source.items():
            _draw_curve(axes, curve, by_name[source], source)
        axes.axhline(1 / max(len(by_source), 1), color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="equal weights")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in panels[::COLUMNS]:
        axes.set_ylim(bottom=0)  # after all curves are drawn, because it ends the scaling of the shared axis
        axes.set_ylabel("source weight in the fused features", color=INK)
    if panels:
        _legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def answer_sheet(samples: Sequence[SampleAnswers], metric: str = DEFAULT_METRIC) -> Figure:
    """Draws sample images with a question each, the truth, and every arm's answer.

    Args:
        samples: the questions.
        metric: the registered name of the metric; an answer with its best score is marked as right.
    """
    scorer = build_metric(metric)
    columns = max(1, min(COLUMNS, len(samples)))
    rows = max(1, ceil(len(samples) / columns))
    arms = max((len(sample["answers"]) for sample in samples), default=1)
    height = max(1.6, 0.24 * (arms + 4))
    figure = Figure(figsize=(CARD_WIDTH * columns, height * rows + 0.2), dpi=DPI)
    # The image on the left of each card, its text on the right.
    widths = [IMAGE_WIDTH, CARD_WIDTH - IMAGE_WIDTH] * columns
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=widths)
    figure.subplots_adjust(left=0.008, right=0.995, top=0.99, bottom=0.01, wspace=0.06, hspace=0.1)
    for cell in grid.flat:
        cell.set_axis_off()
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        image, text = grid[row, 2 * column], grid[row, 2 * column + 1]
        image.imshow(_pixels(sample["image"]), interpolation="nearest")
        image.set_anchor("W")
        _write_card(text, sample, scorer)
    return figure


def _write_card(axes: Axes, sample: SampleAnswers, scorer: AnswerMetric) -> None:
    question = textwrap.fill(sample["question"], LINE_CHARACTERS)
    lines: list[Artist] = [TextArea(question, textprops={"color": INK, "size": 11, "weight": "bold"})]
    lines.append(TextArea(_short(f"truth: {sample['truth']}"), textprops={"color": MUTED, "size": 11}))
    for arm, answer in sample["answers"].items():
        right = scorer.is_best(answer, sample["truth"])
        text = _short(f"{'✓' if right else '✗'} {arm}: {answer or '(nothing)'}")
        lines.append(TextArea(text, textprops={"color": RIGHT if right else WRONG, "size": 11}))
    card = VPacker(children=lines, pad=0, sep=4)
    axes.add_artist(
        AnnotationBbox(card, (0.02, 0.5), xycoords="axes fraction", box_alignment=(0, 0.5), frameon=False, pad=0)
    )


def _short(text: str) -> str:
    return text if len(text) <= LINE_CHARACTERS + 3 else f"{text[: LINE_CHARACTERS + 2].rstrip()}…"


def _pixels(image: "Path | str | NDArray[Any]") -> NDArray[Any]:
    if isinstance(image, Path | str):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    return image


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
        axes.set_xlabel("optimiser step", color=INK)
        clean_axes(axes)
    return figure, panels


def _draw_curve(axes: Axes, curve: Curve, color: str, label: str) -> None:
    """Draws the curve as logged, thin, and its running mean where there are many points."""
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    window = len(values) // 20
    axes.plot(steps, values, color=color, linewidth=1.0, alpha=0.35 if window > 1 else 0.0)
    means = [float(np.mean(values[max(0, i - window // 2) : i + window // 2 + 1])) for i in range(len(values))]
    axes.plot(steps, means, color=color, linewidth=2.0, label=label)


def _grouped_bars(axes: Axes, groups: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    """Draws one group of bars per entry of `groups`, with one bar of each series."""
    width = 0.8 / max(len(values), 1)
    for number, (color, (name, heights)) in enumerate(zip(colors(values), values.items(), strict=True)):
        positions = [group + (number - (len(values) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(positions, heights, width * 0.92, color=color, label=name, zorder=3)
    labels = [textwrap.fill(group.replace("_", " "), 10, break_long_words=False) for group in groups]
    axes.set_xticks(range(len(groups)), labels, color=INK)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    clean_axes(axes)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)


def _legend_above(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=10)


def clean_axes(axes: Axes) -> None:
    """Removes what shows no data: frame, ticks, and all but faint horizontal lines."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9.5)
    axes.tick_params(axis="y", which="both", length=0)


def colors(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Returns one colour per name, in order; they repeat after eight."""
    return [PALETTE[number % len(PALETTE)] for number in range(len(names))]


def _values(scores: KindScores, kinds: Sequence[str]) -> list[float]:
    return [scores.by_kind.get(kind, float("nan")) for kind in kinds]


def _is_fraction(metric: type[AnswerMetric]) -> bool:
    return metric.bounds == (0, 1)
