"""Parses boxes from generated text and draws them on the image."""

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

from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import visible

LABELLED_BOXES = re.compile(r"([^<>]+)((?:<loc_\d+>){4,})")
"""Florence-2's format: a label, then its boxes, each as four location tokens."""


CORNERS = re.compile(r"<loc_(\d+)>" * 4)


@dataclass(frozen=True)
class Box:
    """A label and its box x0, y0, x1, y1 in location bins."""

    label: str
    corners: tuple[int, int, int, int]

    def overlap(self, other: "Box") -> float:
        """Returns the intersection over union of the two boxes; the corner bins belong to the boxes."""
        left, top = max(self.corners[0], other.corners[0]), max(self.corners[1], other.corners[1])
        right, bottom = min(self.corners[2], other.corners[2]), min(self.corners[3], other.corners[3])
        shared = max(0, right - left + 1) * max(0, bottom - top + 1)
        union = self._area + other._area - shared
        return shared / union if union else 0.0

    @property
    def _area(self) -> int:
        return max(0, self.corners[2] - self.corners[0] + 1) * max(0, self.corners[3] - self.corners[1] + 1)


def parse_boxes(text: str) -> list[Box]:
    """Returns the boxes in a text such as 'red circle<loc_1><loc_2><loc_9><loc_9>'; skips what does not parse.

    Several boxes may follow one label, as released models write objects of one kind.
    """
    return [
        Box(labelled[1].strip(), (int(corners[1]), int(corners[2]), int(corners[3]), int(corners[4])))
        for labelled in LABELLED_BOXES.finditer(text)
        for corners in CORNERS.finditer(labelled[2])
    ]


def written_text(tokenizer: Any, ids: torch.Tensor) -> str:
    """Decodes token ids [S], without the special tokens around the text but with the location tokens in it."""
    edges = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    return tokenizer.decode([token for token in ids.tolist() if token not in edges]).strip()


MIN_SIDE, MAX_SIDE = 768, 2048
"""Bounds of the longest side in pixels: a smaller image is enlarged by a whole number, a larger one reduced."""
BOX_COLOURS = (
    (230, 60, 50), (30, 120, 220), (240, 190, 20), (30, 160, 70), (190, 70, 200), (245, 130, 30), (20, 190, 200),
    (250, 110, 170), (150, 200, 40), (130, 90, 60),
)
"""RGB colours of the boxes, in turn; they differ from each other and from most image content."""
DARK, LIGHT = (20, 20, 20), (255, 255, 255)
MAX_LUMINANCE_FOR_LIGHT_TEXT = 140
"""Above this luminance of the background, dark text is easier to read."""

Frame = tuple[float, float, float, float]


@dataclass(frozen=True)
class PixelBox:
    """A label and its box: left, top, right, bottom in pixels."""

    label: str
    frame: Frame


def in_pixels(box: Box, bins: int, width: int, height: int) -> PixelBox:
    """Converts a box to pixels of a width x height image; a corner is the centre of its bin, left is before right."""
    x0, y0, x1, y1 = ((corner + 0.5) / bins for corner in box.corners)
    left, right = sorted((x0 * width, x1 * width))
    top, bottom = sorted((y0 * height, y1 * height))
    return PixelBox(box.label, (left, top, right, bottom))


def draw_boxes(pixels: NDArray[np.uint8], boxes: Sequence[PixelBox]) -> Image.Image:
    """Draws boxes with their labels on an image [h, w, 3], each in a colour of its own; returns an RGB image."""
    canvas, zoom = _enlarged(Image.fromarray(pixels))
    pen = ImageDraw.Draw(canvas)
    longest = max(canvas.size)
    line = max(2, longest // 192)
    font = _font(max(12, longest // 40))
    frames = [_zoomed(box.frame, zoom) for box in boxes]
    for number, frame in enumerate(frames):
        _outline(pen, frame, line, BOX_COLOURS[number % len(BOX_COLOURS)])
    taken: list[Frame] = []
    for number, (box, frame) in enumerate(zip(boxes, frames, strict=True)):
        text = _shortened(visible(box.label).replace("\n", " "), font, canvas.width)
        place = _place(frame, _tag_size(text, font), canvas.size, taken)
        taken.append(place)
        _tag(pen, place, text, font, BOX_COLOURS[number % len(BOX_COLOURS)])
    return canvas


def _enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    longest = max(image.size)
    if longest > MAX_SIDE:
        zoom = MAX_SIDE / longest
        size = max(1, round(image.width * zoom)), max(1, round(image.height * zoom))
        return image.resize(size, Image.Resampling.LANCZOS), zoom
    whole = -(-MIN_SIDE // longest)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST), whole


def _zoomed(frame: Frame, zoom: float) -> Frame:
    left, top, right, bottom = frame
    return left * zoom, top * zoom, right * zoom, bottom * zoom


def _outline(pen: ImageDraw.ImageDraw, frame: Frame, line: int, colour: tuple[int, int, int]) -> None:
    """Draws a coloured frame between two dark lines, which is visible on any background."""
    left, top, right, bottom = map(round, frame)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=line + 2)
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _place(frame: Frame, size: tuple[int, int], canvas: tuple[int, int], taken: Sequence[Frame]) -> Frame:
    """Places a tag above its box, below it, or inside at the top or the bottom: the first that covers no other tag."""
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
    pen.rectangle(place, fill=colour, outline=DARK)
    red, green, blue = colour
    ink = DARK if 0.3 * red + 0.59 * green + 0.11 * blue > MAX_LUMINANCE_FOR_LIGHT_TEXT else LIGHT
    pen.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, ink, font, anchor="mm")


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return int(font.getlength(text) + font.size / 2) + 1, ascent + descent


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns the text, shortened with an ellipsis where it is wider than `width` pixels."""
    if _tag_size(text, font)[0] <= width:
        return text
    kept = len(text)
    while kept and _tag_size(f"{text[:kept]}…", font)[0] > width:
        kept -= 1
    return f"{text[:kept].rstrip()}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all; DataError where it cannot be written."""
    try:
        with atomic_write(path) as temporary:
            picture.save(temporary, "PNG", optimize=True)
    except OSError as error:
        raise DataError(f"--output: {path} cannot be written ({error.strerror})") from None
