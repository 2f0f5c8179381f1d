"""Figures of sources that are knocked out: losses with intervals, and losses by kind of question."""

from collections.abc import Sequence
from math import isfinite

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fvl_lightning.attribution.knock_out.scores import KnockOut
from fvl_lightning.reporting.style import DPI, INK, MUTED, clean_axes, colors, legend_above, spanned

SMALLEST_SPAN = 0.1
"""Smallest part of the metric's range that an axis of losses shows."""


def losses_figure(found: Sequence[KnockOut]) -> Figure:
    """Draws the loss of each source that is left out with its interval, one colour for each kind of substitute."""
    sources, palette = found[0].sources, colors([each.replacement for each in found])
    figure = Figure(figsize=(max(5.0, 1.2 * len(sources) + 2), 3.6), dpi=DPI, layout="constrained")
    axes, drawn = figure.subplots(), [0.0]
    axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
    handles = []
    for number, each in enumerate(found):
        shift = 0.16 * (number - (len(found) - 1) / 2)
        for place, loss in enumerate(each.overall.losses.values()):
            low, high = loss.interval
            if isfinite(low):
                axes.plot([place + shift] * 2, [low, high], color=palette[number], linewidth=2, zorder=2)
                drawn += [low, high]
            (point,) = axes.plot(place + shift, loss.value, "o", color=palette[number], zorder=3)
            drawn.append(loss.value)
        handles.append(point)
    lowest, highest = found[0].bounds
    axes.set_ylim(*spanned(drawn, SMALLEST_SPAN * (highest - lowest if isfinite(highest - lowest) else max(drawn))))
    axes.set_xticks(range(len(sources)), sources)
    axes.set_xlim(-0.6, len(sources) - 0.4)
    axes.set_ylabel("loss without the source", color=INK)
    clean_axes(axes)
    if len(found) > 1:
        legend_above(figure, handles, [f"replaced: {each.replacement}" for each in found])
    return figure


def kinds_figure(found: KnockOut) -> Figure:
    """Draws a table of losses, kinds of question by sources; a frame marks an interval that excludes zero."""
    kinds, sources = list(found.by_kind), found.sources
    losses = [[scores.losses[source] for source in sources] for scores in found.by_kind.values()]
    values = np.array([[loss.value for loss in row] for row in losses])
    largest = float(np.nanmax(np.abs(values), initial=1e-9))
    size = (1.1 * len(sources) + 2.6, 0.36 * len(kinds) + 1.3)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    for row, own in enumerate(losses):
        for column, loss in enumerate(own):
            pale = abs(loss.value) < 0.6 * largest
            axes.text(column, row, f"{loss.value:+.2f}", ha="center", va="center", color=INK if pale else "white")
            if loss.excludes_zero:
                frame = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=INK, linewidth=1.4)
                axes.add_patch(frame)
    axes.set_xticks(range(len(sources)), sources)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="loss without the source").outline.set_visible(False)
    return figure
