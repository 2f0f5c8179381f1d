"""Writes boxes as Florence-2's location tokens <loc_0>, <loc_1> ..."""

import math
from collections.abc import Sequence
from typing import Any

from fvl_lightning.core.errors import DataError


def location_bins(tokenizer: Any) -> int:
    """Returns the number of the tokenizer's location tokens <loc_0>, <loc_1> ...; DataError if it has none."""
    vocabulary = tokenizer.get_vocab()
    bins = 0
    while f"<loc_{bins}>" in vocabulary:
        bins += 1
    if bins == 0:
        raise DataError("prompt 'grounding': the tokenizer has no location tokens <loc_0>, <loc_1> ...")
    return bins


def boxes_as_text(boxes: Sequence[dict[str, Any]], bins: int) -> str:
    """Joins label<loc_x0><loc_y0><loc_x1><loc_y1> of all boxes; coordinates are fractions of the image's sides."""
    texts = []
    for box in boxes:
        x0, y0, x1, y1 = (min(max(math.floor(value * bins), 0), bins - 1) for value in box["box"])
        texts.append(f"{box['label']}<loc_{x0}><loc_{y0}><loc_{x1}><loc_{y1}>")
    return "".join(texts)
