"""A picture with labelled boxes drawn on it, for people to look at."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fvl_lightning.core.terminal import visible

LOCATED = re.compile(r"([^<>]+)((?:<loc_\d+>){4,})")
"""Florence-2's format: a label, then the corners of its boxes as location tokens, four for each of them."""


CORNERS = re.compile(r"<loc_(\d+)>" * 4)


@dataclass(frozen=True)
class Box:
    """A label and the corners x0, y0, x1, y1 of its box, in location bins."""

    label: str
    corners: tuple[int, int, int, int]

    def overlap(self, other: "Box") -> float:
        """Intersection over union of the two boxes, corners included."""
        left, top = max(self.corners[0], other.corners[0]), max(self.corners[1], other.corners[1])
        right, bottom = min(self.corners[2], other.corners[2]), min(self.corners[3], other.corners[3])
        shared = max(0, right - left + 1) * max(0, bottom - top + 1)
        union = self._area + other._area - shared
        return shared / union if union else 0.0

    @property
    def _area(self) -> int:
        return max(0, self.corners[2] - self.corners[0] + 1) * max(0, self.corners[3] - self.corners[1] + 1)


def parse_boxes(text: str) -> list[Box]:
    """The objects in a text such as 'red circle<loc_1><loc_2><loc_9><loc_9>'; what does not parse is skipped.

    Several boxes may follow one label, as in what released models write about objects of one kind.
    """
    return [
        Box(located[1].strip(), (int(corners[1]), int(corners[2]), int(corners[3]), int(corners[4])))
        for located in LOCATED.finditer(text)
        for corners in CORNERS.finditer(located[2])
    ]


def written_text(tokenizer: Any, ids: torch.Tensor) -> str:
    """Decoded without the special tokens around the text, but with the location tokens in it."""
    edges = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    return tokenizer.decode([token for token in ids.tolist() if token not in edges]).strip()


SMALLEST, LARGEST = 768, 2048
"""Pixels of the longest side: a smaller picture is enlarged by a whole number, a larger one reduced."""
COLOURS = (
    (230, 60, 50), (30, 120, 220), (240, 190, 20), (30, 160, 70), (190, 70, 200), (245, 130, 30), (20, 190, 200),
    (250, 110, 170), (150, 200, 40), (130, 90, 60),
)
"""Of the boxes in turn; told apart beside each other, and from most of what is in pictures."""
INK, PAPER = (20, 20, 20), (255, 255, 255)
BRIGHT = 140
"""Luminance from which on dark letters are read better."""

Frame = tuple[float, float, float, float]


@dataclass(frozen=True)
class PixelBox:
    """A label and the edges of its box: left, top, right, bottom in pixels."""

    label: str
    frame: Frame


def in_pixels(box: Box, bins: int, width: int, height: int) -> PixelBox:
    """A box of location bins in a picture of that size: each corner in the middle of its bin, left before right."""
    x0, y0, x1, y1 = ((corner + 0.5) / bins for corner in box.corners)
    left, right = sorted((x0 * width, x1 * width))
    top, bottom = sorted((y0 * height, y1 * height))
    return PixelBox(box.label, (left, top, right, bottom))


def draw_boxes(pixels: NDArray[np.uint8], boxes: Sequence[PixelBox]) -> Image.Image:
    """The picture [h, w, 3] with the boxes on it, each in a colour of its own with its label beside it; RGB."""
    canvas, zoom = _enlarged(Image.fromarray(pixels))
    pen = ImageDraw.Draw(canvas)
    longest = max(canvas.size)
    line = max(2, longest // 192)
    font = _font(max(12, longest // 40))
    frames = [_zoomed(box.frame, zoom) for box in boxes]
    for number, frame in enumerate(frames):
        _outline(pen, frame, line, COLOURS[number % len(COLOURS)])
    taken: list[Frame] = []
    for number, (box, frame) in enumerate(zip(boxes, frames, strict=True)):
        text = _shortened(visible(box.label).replace("\n", " "), font, canvas.width)
        place = _place(frame, _tag_size(text, font), canvas.size, taken)
        taken.append(place)
        _tag(pen, place, text, font, COLOURS[number % len(COLOURS)])
    return canvas


def _enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    longest = max(image.size)
    if longest > LARGEST:
        zoom = LARGEST / longest
        size = max(1, round(image.width * zoom)), max(1, round(image.height * zoom))
        return image.resize(size, Image.Resampling.LANCZOS), zoom
    whole = -(-SMALLEST // longest)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST), whole


def _zoomed(frame: Frame, zoom: float) -> Frame:
    left, top, right, bottom = frame
    return left * zoom, top * zoom, right * zoom, bottom * zoom


def _outline(pen: ImageDraw.ImageDraw, frame: Frame, line: int, colour: tuple[int, int, int]) -> None:
    """A frame that is seen on any ground: its colour between two dark lines."""
    left, top, right, bottom = map(round, frame)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK, width=line + 2)
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _place(frame: Frame, size: tuple[int, int], canvas: tuple[int, int], taken: Sequence[Frame]) -> Frame:
    """Where a tag goes: above its box, below, inside at the top or the bottom; the first that covers no other tag."""
    width, height = size
    left = max(0.0, min(frame[0], canvas[0] - width))
    lowest = max(0, canvas[1] - height)
    tops = [frame[1] - height, frame[3], frame[1], frame[3] - height]
    places = [(left, top, left + width, top + height) for top in tops if 0 <= top <= lowest]
    free = [place for place in places if not any(_meet(place, other) for other in taken)]
    top = min(max(frame[1], 0.0), lowest)
    return (free or places or [(left, top, left + width, top + height)])[0]


def _meet(one: Frame, other: Frame) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _tag(
    pen: ImageDraw.ImageDraw, place: Frame, text: str, font: ImageFont.FreeTypeFont, colour: tuple[int, int, int]
) -> None:
    pen.rectangle(place, fill=colour, outline=INK)
    red, green, blue = colour
    ink = INK if 0.3 * red + 0.59 * green + 0.11 * blue > BRIGHT else PAPER
    pen.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, ink, font, anchor="mm")


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return int(font.getlength(text) + font.size / 2) + 1, ascent + descent


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of its beginning as fits into `width` pixels, with dots behind it."""
    if _tag_size(text, font)[0] <= width:
        return text
    kept = len(text)
    while kept and _tag_size(f"{text[:kept]}…", font)[0] > width:
        kept -= 1
    return f"{text[:kept].rstrip()}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)










