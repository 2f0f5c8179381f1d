"""Draws a scene with Pillow and returns the box of each object in it."""

import math
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from datamodules.demo.handwriting import load_scans
from datamodules.demo.levels import SIZE, Level
from datamodules.demo.scenes import Bar, Number, Scene, Shape, Word

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's side."""

INK = {
    "red": (230, 45, 45),
    "green": (55, 190, 70),
    "blue": (60, 110, 250),
    "yellow": (245, 220, 50),
    "purple": (165, 70, 215),
    "orange": (250, 140, 30),
    "cyan": (70, 225, 230),
    "white": (245, 245, 245),
}
_OVERSAMPLING = 4
_AXIS = (150, 150, 150)
_BASELINE, _CHART_LEFT, _CHART_RIGHT, _CHART_HEIGHT = 60, 6, 62, 56


def draw_scene(scene: Scene, level: Level) -> tuple[Image.Image, list[Box]]:
    """Returns the image (RGB, SIZE x SIZE) and one box per object, in the order of the scene's objects."""
    image = Image.new("RGB", (SIZE, SIZE), (scene.background,) * 3)
    if scene.shapes:
        return _draw_shapes(image, scene.shapes)
    if scene.words:
        return image, _draw_words(image, scene.words, level)
    if scene.bars:
        return image, _draw_bars(image, scene.bars, level)
    assert scene.number is not None
    return image, [_draw_number(image, scene.number, level)]


def _draw_shapes(image: Image.Image, shapes: tuple[Shape, ...]) -> tuple[Image.Image, list[Box]]:
    """Draws shapes large and scales them down, for smooth edges; a dark outline separates overlapping shapes."""
    large = image.resize((SIZE * _OVERSAMPLING, SIZE * _OVERSAMPLING))
    pen = ImageDraw.Draw(large)
    boxes: list[Box] = []
    for shape in shapes:
        points = [(shape.x + dx * shape.radius, shape.y + dy * shape.radius) for dx, dy in outline(shape.shape)]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        boxes.append(_as_box(min(xs), min(ys), max(xs), max(ys)))
        corners = [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points]
        pen.polygon(corners, fill=INK[shape.colour])
        pen.line([*corners, corners[0]], fill=(0, 0, 0), width=2)
    return large.reduce(_OVERSAMPLING), boxes


@lru_cache(maxsize=16)
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Returns the corners of a shape of radius 1 around the origin, with y downwards."""
    if shape == "square":
        side = 0.85
        return (-side, -side), (side, -side), (side, side), (-side, side)
    if shape == "cross":
        arm, end = 0.33, 0.95
        quarter = ((arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm), (arm, end))
        return quarter + tuple((-x, -y) for x, y in quarter)
    if shape == "diamond":
        return (0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)
    corners, inner = {"circle": (40, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
    # Every second corner of a star lies inside; the first corner points up.
    radii = [1.0 if i % 2 == 0 else inner for i in range(corners)]
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return tuple((r * math.sin(turn), -r * math.cos(turn)) for r, turn in zip(radii, turns, strict=True))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Bold: thin strokes are too faint to learn to read from at this size.
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    return ImageFont.truetype(str(path), size)


def _draw_words(image: Image.Image, words: tuple[Word, ...], level: Level) -> list[Box]:
    """Draws each word in its own band, from top to bottom."""
    pen, font = ImageDraw.Draw(image), _font(level.font_size)
    band = SIZE / len(words)
    boxes = []
    for row, word in enumerate(words):
        left, top, right, bottom = font.getbbox(word.text)
        width, height = right - left, bottom - top
        x = 1 + round(word.across * (SIZE - 2 - width))
        y = round(row * band) + 1 + round(word.down * (band - 2 - height))
        pen.text((x - left, y - top), word.text, font=font, fill=INK[word.colour])
        boxes.append(_as_box(x, y, x + width, y + height))
    return boxes


def _draw_bars(image: Image.Image, bars: tuple[Bar, ...], level: Level) -> list[Box]:
    """Draws bars on a baseline; at levels that ask for values, also a line for each unit."""
    pen = ImageDraw.Draw(image)
    unit = _CHART_HEIGHT / level.tallest_value
    if level.relations:
        for value in range(1, level.tallest_value + 1):
            y = round(_BASELINE - value * unit)
            grey = 75 if value % 2 == 0 else 55
            pen.line([(_CHART_LEFT, y), (_CHART_RIGHT, y)], fill=(grey,) * 3)
    pen.line([(_CHART_LEFT - 2, 2), (_CHART_LEFT - 2, _BASELINE + 1)], fill=_AXIS)
    pen.line([(_CHART_LEFT - 2, _BASELINE + 1), (_CHART_RIGHT, _BASELINE + 1)], fill=_AXIS)
    slot = (_CHART_RIGHT - _CHART_LEFT) / len(bars)
    boxes = []
    for place, bar in enumerate(bars):
        x0 = round(_CHART_LEFT + place * slot + 0.15 * slot)
        x1 = round(_CHART_LEFT + (place + 1) * slot - 0.15 * slot) - 1
        y0 = round(_BASELINE - bar.value * unit)
        pen.rectangle([(x0, y0), (x1, _BASELINE)], fill=INK[bar.colour])
        boxes.append(_as_box(x0, y0, x1 + 1, _BASELINE + 1))
    return boxes


def _draw_number(image: Image.Image, number: Number, level: Level) -> Box:
    """Draws the enlarged scans side by side, as the transparency of a coloured layer."""
    scans, _ = load_scans()
    side = level.digit_size
    step = round(side * 0.75)  # the scans have empty margins
    mask = Image.new("L", (side + step * (len(number.scans) - 1), side))
    for place, scan in enumerate(number.scans):
        digit = Image.fromarray(scans[scan]).resize((side, side), Image.Resampling.BICUBIC)
        mask.paste(255, (place * step, 0), digit)
    ink = mask.point([255 if value > 60 else 0 for value in range(256)]).getbbox()
    assert ink is not None, "every scan has ink"
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    x = 1 + round(number.across * (SIZE - 2 - width)) - ink[0]
    y = 1 + round(number.down * (SIZE - 2 - height)) - ink[1]
    image.paste(INK[number.colour], (x, y), mask)
    return _as_box(x + ink[0], y + ink[1], x + ink[2], y + ink[3])


def _as_box(x0: float, y0: float, x1: float, y1: float) -> Box:
    left, top, right, bottom = (round(min(max(value / SIZE, 0.0), 1.0), 4) for value in (x0, y0, x1, y1))
    return left, top, right, bottom
