"""Sheet of sample images with a question each, the truth, and every arm's answer."""

import textwrap
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, TextArea, VPacker
from numpy.typing import NDArray
from PIL import Image

from fvl_lightning.core.terminal import visible
from fvl_lightning.evaluation.metrics.base import AnswerMetric, Reference
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_METRIC, build_metric
from fvl_lightning.reporting.style import DPI, INK, MUTED

RIGHT, WRONG = "#00795A", "#C24A00"
"""Colours of answers, which are also marked by a sign."""
COLUMNS = 3
"""Samples side by side."""
CARD_WIDTH = 4.2
"""Inches of one sample on the sheet."""
IMAGE_WIDTH = 1.45
"""Inches of its image."""
LINE_CHARACTERS = 27
"""Characters in a line of a sample's text."""


class SampleAnswers(TypedDict):
    """A question on the sheet of sample answers."""

    image: Path | str | NDArray[Any]
    """File or pixels [H, W, 3] (uint8, or in [0, 1])."""
    question: str
    truth: str
    answers: dict[str, str]
    """{arm: its answer}."""


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
    question = textwrap.fill(visible(sample["question"]), LINE_CHARACTERS)
    lines: list[Artist] = [TextArea(question, textprops={"color": INK, "size": 11, "weight": "bold"})]
    lines.append(TextArea(_short(f"truth: {sample['truth']}"), textprops={"color": MUTED, "size": 11}))
    for arm, answer in sample["answers"].items():
        right = scorer.is_best(answer, Reference((sample["truth"],)))
        text = _short(f"{'✓' if right else '✗'} {arm}: {answer or '(nothing)'}")
        lines.append(TextArea(text, textprops={"color": RIGHT if right else WRONG, "size": 11}))
    card = VPacker(children=lines, pad=0, sep=4)
    axes.add_artist(
        AnnotationBbox(card, (0.02, 0.5), xycoords="axes fraction", box_alignment=(0, 0.5), frameon=False, pad=0)
    )


def _short(text: str) -> str:
    text = visible(text)
    return text if len(text) <= LINE_CHARACTERS + 3 else f"{text[: LINE_CHARACTERS + 2].rstrip()}…"


def _pixels(image: "Path | str | NDArray[Any]") -> NDArray[Any]:
    if isinstance(image, Path | str):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    return image
