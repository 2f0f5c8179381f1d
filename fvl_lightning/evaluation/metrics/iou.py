"""Grounding: the overlap of a box in the answer with the true one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import nan
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.registry import register
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS, OVER_QUESTIONS
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference

Box = tuple[float, float, float, float]
"""Left, top, right and bottom side, as shares of the image's width and height."""
MAX_CHARACTERS = 20_000
"""Characters of an answer in which a box is looked for."""
_NUMBER = r"(-?\d{1,30}(?:\.\d{1,30})?)"
_BRACKETS = re.compile(r"\[\s{0,9}" + r",\s{0,9}".join([_NUMBER] * 4) + r"\s{0,9}\]")
_ANY = re.compile(r"(?<![\d.])" + r"[\s,;()\[\]]{1,9}".join([_NUMBER] * 4) + r"(?!\d|\.\d)")
_LOCATIONS = re.compile(r"<loc_(\d{1,6})>" * 4)
_HIT = 0.5


@register("metric", "iou")
class IouMetric(AnswerMetric):
    """Intersection over union of the first box in the answer with the true one; also the share that reaches 0.5.

    A box is left, top, right and bottom: [x1, y1, x2, y2], other brackets and white space such as (x1, y1), (x2, y2),
    or four location tokens <loc_0> ... <loc_999> as Florence-2 writes them, which stand for the middle of their bin.
    An answer without a box scores 0. A box whose sides are the wrong way round has no area and scores 0; lmms-eval
    multiplies negative sides, and may find overlaps above 1 or below 0: `as_lmms_eval` does so, too, and reads only
    numbers in square brackets.
    """

    title = "IoU"
    criterion = "overlap"
    explanation = "score the intersection over union of their first box and the true one"
    averages = MappingProxyType(
        {
            OVER_KINDS: "{title}, macro average over kinds",
            OVER_QUESTIONS: "{title}, mean over all questions",
            "accuracy_at_0.5": "{title} of at least 0.5, share of all questions",
        }
    )

    @dataclass
    class Config:
        """Options of how boxes are read."""

        unit: float = number(1.0, above=0)
        """Number that stands for the whole width and height in answers: 1, or 1000 for thousandths."""
        truth_unit: float = number(1.0, above=0)
        """Number that stands for the whole width and height in references; not used with `pixels`."""
        pixels: bool = False
        """Whether references are pixels; the row's fields width and height have the size of the image."""
        truth: Literal["corners", "corner_and_size"] = "corners"
        """Form of the references. corners: left, top, right, bottom; corner_and_size: left, top, width, height, as in
        COCO."""
        bins: int = number(1000, at_least=1)
        """Number of location tokens."""
        as_lmms_eval: bool = False
        """Whether boxes are read and compared as in lmms-eval."""

    def __init__(self, config: Any, kinds: Iterable[str]) -> None:
        """Builds a metric over these kinds of question, with the component's Config."""
        super().__init__(config, kinds)
        self.hits: Tensor
        self.add_state("hits", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def prepare(self, references: Iterable[Reference]) -> None:
        """Checks that every reference is a box; DataError where one is not."""
        for reference in references:
            if not self._truths(reference):
                shown = ", ".join(map(repr, reference.answers))[:100] or "no answer"
                size = " in pixels, with fields width and height" if self.config.pixels else ""
                where = f"the answer to {reference.question[:100]!r}"
                raise DataError(f"metric iou: {where} must be a box [x1, y1, x2, y2]{size}, not {shown}")

    def score(self, text: str, truth: str) -> float:
        """Returns the overlap of the answer's box with the true one; NaN for a truth without a box."""
        return self.score_answer(text, Reference((truth,)))

    def score_answer(self, text: str, reference: Reference) -> float:
        """Returns the largest overlap with a true box; NaN without one."""
        true, found = self._truths(reference), self._box(text, self.config.unit)
        overlap = _raw_overlap if self.config.as_lmms_eval else _overlap
        return max((overlap(found or (0.0, 0.0, 0.0, 0.0), box) for box in true), default=nan)

    def update(self, kind: str, text: str, reference: Reference) -> None:
        """Adds one answer to a question of this kind."""
        super().update(kind, text, reference)
        self.hits += self.score_answer(text, reference) >= _HIT

    def compute(self) -> KindScores:
        """Returns mean overlaps, and the share of answers that reach 0.5; NaN without questions."""
        asked = int(self.asked.sum())
        return replace(super().compute(), further={"accuracy_at_0.5": int(self.hits) / asked if asked else nan})

    def _box(self, text: str, unit: float) -> Box | None:
        text = text[:MAX_CHARACTERS]
        if not self.config.as_lmms_eval and (tokens := _LOCATIONS.search(text)):
            return _boxed((int(place) + 0.5) / self.config.bins for place in tokens.groups())
        found = _BRACKETS.search(text) or (None if self.config.as_lmms_eval else _ANY.search(text))
        return _boxed(float(side) / unit for side in found.groups()) if found else None

    def _truths(self, reference: Reference) -> list[Box]:
        """Returns the true boxes as shares of the image; a flat list of numbers in the row holds several boxes."""
        texts = list(reference.answers)
        if all(re.fullmatch(r"\s*" + _NUMBER + r"\s*", text) for text in texts):
            texts = [", ".join(texts[start : start + 4]) for start in range(0, len(texts), 4)]
        width = height = self.config.truth_unit
        if self.config.pixels:
            width, height = (float(reference.row.get(side) or 0) for side in ("width", "height"))
        boxes = [self._box(text, 1.0) or self._box(f"[{text}]", 1.0) for text in texts]
        if not (width > 0 and height > 0):
            return []
        found = []
        for text, box in zip(texts, boxes, strict=True):
            if box is not None:
                left, top, right, bottom = box
                if self.config.truth == "corner_and_size":
                    right, bottom = left + right, top + bottom
                shares = "<loc_" in text
                found.append(box if shares else (left / width, top / height, right / width, bottom / height))
        return found


def _boxed(sides: Iterable[float]) -> Box:
    left, top, right, bottom = sides
    return left, top, right, bottom


def _raw_overlap(one: Box, other: Box) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def _overlap(one: Box, other: Box) -> float:
    if any(box[2] <= box[0] or box[3] <= box[1] for box in (one, other)):
        return 0.0
    return _raw_overlap(one, other)
