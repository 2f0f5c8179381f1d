"""Figures with pictures of the images, and a matrix of similarities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from fvl_lightning.core.types import ImageSpec
from fvl_lightning.reporting.style import DPI, INK, MUTED, short_names, wrapped

SIDE, TITLE = 1.35, 0.55
"""Inches of a picture's side, and of the titles above the columns."""
STRENGTH = 0.72
"""How much of a picture the largest attention covers."""


@dataclass(frozen=True)
class Looked:
    """A picture, and what an answer to a question about it looks at."""

    picture: NDArray[np.uint8]
    """[height, width, 3]."""
    text: str
    """Question and answer."""
    maps: Mapping[str, Tensor]
    """{title of a column: [rows, columns]}, at least zero."""


def as_picture(pixels: Tensor, spec: ImageSpec) -> NDArray[np.uint8]:
    """Returns normalised pixels [3, P, P] as a picture [P, P, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    values = (pixels.float().cpu() * std + mean).clamp(0, 1) * 255
    return values.round().to(torch.uint8).permute(1, 2, 0).numpy()


def colour_maps_figure(pictures: Sequence[NDArray[np.uint8]], colours: Mapping[str, Tensor]) -> Figure:
    """Draws each picture beside the colours {title: [I, rows, columns, 3]} of its places, a row for each picture."""
    figure, axes = _grid_of_pictures(len(pictures), 1 + len(colours))
    for row, picture in zip(axes, pictures, strict=True):
        row[0].imshow(picture)
    for column, (title, maps) in enumerate(colours.items(), 1):
        axes[0][column].set_title(wrapped(title), fontsize=9, color=INK)
        for row, values in zip(axes, maps, strict=True):
            row[column].imshow(values.numpy(), interpolation="nearest")
    return figure


def attention_figure(looked: Sequence[Looked], largest: float | None = None) -> Figure:
    """Draws a row for each answer: the picture, and for each map the picture where it is lit by attention.

    The brightest place of a map has its largest value, or `largest`.
    """
    columns = list(looked[0].maps)
    figure, axes = _grid_of_pictures(len(looked), 1 + len(columns), text=1.9)
    for row, one in zip(axes, looked, strict=True):
        height, width = one.picture.shape[:2]
        row[0].imshow(one.picture)
        place: dict[str, Any] = {"ha": "right", "va": "center", "transform": row[0].transAxes}
        row[0].text(-0.08, 0.5, one.text, **place, fontsize=8.5, color=INK, parse_math=False)
        for cell, title in zip(row[1:], columns, strict=True):
            values = one.maps[title]
            share = (values / (values.max().clamp(min=1e-12) if largest is None else largest)).numpy()
            cell.imshow(one.picture.mean(-1), cmap="gray", vmin=-60, vmax=315, extent=(0, width, height, 0))
            cell.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=STRENGTH, extent=(0, width, height, 0))
    for cell, title in zip(axes[0][1:], columns, strict=True):
        cell.set_title(wrapped(title), fontsize=9, color=INK)
    return figure


def similarity_figure(names: Sequence[str], matrix: Tensor) -> Figure:
    """Draws similarities [K, K] in [0, 1], each with its number."""
    labels = [wrapped(name) for name in short_names(names).values()]
    side = 1.9 + 0.62 * len(names)
    figure = Figure(figsize=(side, side - 0.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(matrix.tolist()):
        for j, value in enumerate(row):
            shown = "-" if value != value else f"{value:.2f}"
            axes.text(j, i, shown, ha="center", va="center", fontsize=8.5, color="white" if value > 0.6 else INK)
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8.5)
    axes.set_yticks(range(len(names)), labels, fontsize=8.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    return figure


def _grid_of_pictures(rows: int, columns: int, text: float = 0.0) -> tuple[Figure, list[list[Axes]]]:
    """Returns a figure of axes without ticks; `text` inches are left free at the left."""
    size = (SIDE * columns + text, SIDE * rows + TITLE)
    figure = Figure(figsize=size, dpi=DPI)
    left, top = text / size[0], 1 - TITLE / size[1]
    ends = {"left": left, "right": 0.995, "bottom": 0.005, "top": top, "wspace": 0.06, "hspace": 0.06}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ends)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        cell.spines[:].set_color(MUTED)
    axes[0][0].set_title("picture", fontsize=9, color=INK)
    return figure, [list(row) for row in axes]
