"""The figure of alignment probes: validation losses over training, with ln N and the floor."""

from collections.abc import Mapping, Sequence
from math import log

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvl_lightning.attribution.alignment.measured import ProbeRun
from fvl_lightning.reporting.style import DPI, INK, MUTED, clean_axes, colors, legend_above, short_names, step_axis


def curves_figure(arms: Mapping[str, Sequence[ProbeRun]]) -> Figure:
    """Draws the validation loss of every run, a colour for each arm, between ln N and the floor of the captions.

    Args:
        arms: {name: its runs}, all with the same N.
    """
    figure = Figure(figsize=(8.0, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    handles = []
    for color, runs in zip(colors(arms), arms.values(), strict=True):
        lines = [axes.plot(*zip(*run.curve, strict=True), color=color, linewidth=1.8)[0] for run in runs if run.curve]
        handles += lines[:1] if runs[0].curve else []
    every = [run for runs in arms.values() for run in runs]
    chance = log(every[0].found["captions"])
    axes.axhline(chance, color=MUTED, linewidth=1.2, linestyle="--")
    _write(axes, f"ln N = {chance:.2f}", chance, -12)
    for floor in sorted({round(run.found["floor"], 3) for run in every}):
        axes.axhline(floor, color=MUTED, linewidth=1.2, linestyle=":")
        _write(axes, f"floor {floor:.2f}", floor, 4)
    axes.set_ylabel("validation loss in nats", color=INK)
    step_axis(axes)
    clean_axes(axes)
    shown = [name for name, runs in zip(short_names(arms).values(), arms.values(), strict=True) if runs[0].curve]
    legend_above(figure, handles, shown)
    return figure


def _write(axes: Axes, text: str, height: float, above: int) -> None:
    """Writes a text at the right end of a horizontal line, so many points above it."""
    axes.annotate(
        text,
        (1, height),
        (-4, above),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color=MUTED,
        fontsize=9.5,
    )
