"""Colours, legends and axes that all figures of reports share.

An axis fits what is drawn, but never shows less than a minimum span, so that a difference of one per cent does not fill
it: a tenth of the metric's range on an axis of scores, a fifth of the largest value on an axis of costs or losses.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, isfinite
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
"""The colours of Okabe and Ito, which colour-blind readers can distinguish."""
INK, MUTED, GRID = "#222222", "#666666", "#E3E3E3"
DPI = 150
SCORE_SPAN = 0.1
"""Smallest part of a metric's range that an axis of scores shows."""
VALUE_SPAN = 0.2
"""Smallest part of its largest value that an axis of costs or losses shows."""
MARGIN = 0.06
"""Space between what is drawn and the ends of an axis, as a part of its length."""
NAME_CHARACTERS = 30
"""Characters of an arm's name in a legend or at an axis; longer names lose their middle."""
LINE_CHARACTERS = 20
"""Characters of a line at a vertical axis."""
CHARACTER_WIDTH, HANDLE_WIDTH = 0.085, 0.75
"""Widths, in inches, of a character and of a handle in a legend."""
TICKS, LONG_TICKS = 7, 4
"""Ticks on an axis, at most one more; fewer where their labels have more than five characters."""


def colors(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Returns one colour per name, in order; they repeat after eight."""
    return [PALETTE[number % len(PALETTE)] for number in range(len(names))]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Returns {name: name cut in the middle to NAME_CHARACTERS}; names that would become equal stay whole."""
    half = NAME_CHARACTERS // 2
    short = {name: name if len(name) <= NAME_CHARACTERS else f"{name[:half]}…{name[1 - half :]}" for name in names}
    shared = Counter(short.values())
    return {name: text if shared[text] == 1 else name for name, text in short.items()}


def wrapped(name: str) -> str:
    """Returns a name in lines, for a tick on a vertical axis."""
    return "\n".join(textwrap.wrap(name.replace("_", "_ "), LINE_CHARACTERS)).replace("_ ", "_")


def clean_axes(axes: Axes) -> None:
    """Removes the frame and vertical-axis ticks, and draws faint horizontal grid lines."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9.5)
    axes.tick_params(axis="y", which="both", length=0)


def legend_above(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Puts a legend above the panels, in as many rows as the labels need."""
    for rows in range(1, len(labels) + 1):
        columns = [labels[start : start + rows] for start in range(0, len(labels), rows)]
        if sum(HANDLE_WIDTH + CHARACTER_WIDTH * max(map(len, column)) for column in columns) < figure.get_figwidth():
            break
    columns_needed = ceil(len(labels) / max(rows, 1)) if labels else 1
    figure.legend(handles, labels, loc="outside upper center", ncols=columns_needed, frameon=False, fontsize=10)


def spanned(values: Iterable[float], smallest: float) -> tuple[float, float]:
    """Returns the ends of an axis that shows all finite values and at least a span of `smallest`."""
    finite = [value for value in values if isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    missing = max(0.0, smallest - (high - low)) / 2
    margin = MARGIN * max(high - low, smallest, 1e-12)
    return low - missing - margin, high + missing + margin


def score_axis(axes: Axes, bounds: tuple[float, float], values: Iterable[float], from_zero: bool) -> None:
    """Fits the vertical axis to scores; it spans at least a tenth of the metric's range.

    Args:
        bounds: lowest and highest score of the metric; scores from 0 to 1 are shown as per cent.
        values: all values that are drawn, ends of error bars included.
        from_zero: whether bars are drawn, which start at zero.
    """
    finite = [value for value in values if isfinite(value)] or [0.0]
    lowest, highest = bounds
    bounded = isfinite(lowest) and isfinite(highest)
    smallest = SCORE_SPAN * (highest - lowest if bounded else max(map(abs, finite)) or 1.0)
    if from_zero:
        top = max(*finite, 0.0)
        bottom = min(*finite, 0.0)
        top = max(top, bottom + smallest)
        margin = MARGIN * (top - bottom)
        axes.set_ylim(bottom - (margin if bottom < 0 else 0), top + margin)
    else:
        low, high = spanned(finite, smallest)
        if bounded:  # no score lies beyond the bounds, so an axis that is longer than its data ends there
            room = MARGIN * (high - low)
            shift = max(0.0, lowest - room - low) - max(0.0, high - highest - room)
            low, high = low + shift, high + shift
        axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(few_ticks(most=TICKS + 1))
    if bounds == (0, 1):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))  # SCORE_SPAN keeps ticks a per cent apart


def few_ticks(integer: bool = False, most: int = TICKS) -> MaxNLocator:
    """Returns a locator of at most `most` + 1 ticks, at multiples of 1, 2 or 5 times a power of ten."""
    return MaxNLocator(most, steps=[1, 2, 5, 10], integer=integer)


def value_axis(axis: Any, values: Iterable[float]) -> None:
    """Fits an axis to costs or losses, with at least a fifth of the largest one, and gives it few ticks."""
    finite = [value for value in values if isfinite(value)] or [1.0]
    low, high = spanned(finite, VALUE_SPAN * max(map(abs, finite)))
    axis.axes.set(**{f"{axis.axis_name}lim": (max(low, 0.0) if min(finite) >= 0 else low, high)})
    axis.set_major_locator(few_ticks(most=TICKS if len(f"{high:,.0f}") <= 5 else LONG_TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))


def _number(value: float) -> str:
    """Returns a number with thousands separators and at most four decimal places."""
    return f"{value:,.4f}".rstrip("0").rstrip(".") if value else "0"


def step_axis(axes: Axes) -> None:
    """Labels the horizontal axis as optimiser steps, at whole numbers only."""
    axes.set_xlabel("optimiser step", color=INK)
    axes.xaxis.set_major_locator(few_ticks(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
