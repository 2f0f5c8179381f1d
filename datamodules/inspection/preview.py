"""Samples as a person looks at them: a contact sheet of their images, and texts with what of them is supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from datamodules.encoding.conversation import ConversationEncoder, Message
from datamodules.inspection.check import content_of
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.terminal import visible
from fvl_lightning.core.types import IGNORE_INDEX

COLUMNS = 4
"""Tiles in a row of a contact sheet; fewer where there are fewer tiles."""

_PICTURE = (300, 225)
_GAP, _MARGIN, _LINE, _LINES = 16, 10, 18, 6
_TILE = (_PICTURE[0] + 2 * _MARGIN, _PICTURE[1] + (_LINES + 2) * _LINE + 3 * _MARGIN)
_PAPER, _CARD, _FRAME, _MOUNT = (240, 240, 238), (255, 255, 255), (205, 205, 202), (228, 228, 226)
_INK, _FAINT, _BAD = (25, 25, 25), (120, 120, 120), (190, 30, 30)
_ROLES = {"system": (120, 90, 160), "user": (40, 90, 170), "assistant": (20, 120, 60), "caption": (20, 120, 60)}
_LARGEST_ZOOM = 4


@dataclass(frozen=True)
class Preview:
    """One sample to look at: `said` is (role, text) of each message, or ("caption", text); `problem` why it can't."""

    key: str
    images: tuple[NDArray[np.uint8], ...] = ()
    said: tuple[tuple[str, str], ...] = ()
    messages: tuple[Message, ...] = ()
    problem: str = ""


def preview_sample(store: SampleStore, i: int) -> Preview:
    """Sample i to look at; one that can't be used has its problem in place of what could not be read."""
    key = store.key(i)
    try:
        record = store.record(i)
        images = tuple(store.images(i))
        content = content_of(store, i, record)
    except SampleError as error:
        return Preview(key, problem=f"{error.reason}{f': {error.detail}' if error.detail else ''}")
    if isinstance(content, str):
        return Preview(key, images, (("caption", content),))
    return Preview(key, images, tuple((message["role"], _spoken(message)) for message in content), tuple(content))


def supervised_runs(preview: Preview, encoder: ConversationEncoder) -> list[tuple[str, int, bool]]:
    """The sample as the model is shown it: (text, tokens, whether they are supervised) of each run of tokens.

    Raises:
        DataError: what the encoder refuses, such as a special token in a text.
        ConfigError: a tokenizer without a usable chat template or end token.
    """
    if preview.messages:
        ids, labels = encoder.encode(preview.messages)
    else:
        ids, labels = encoder.caption(preview.said[0][1], len(preview.images))
    runs = []
    for supervised, places in groupby(range(len(ids)), key=lambda place: labels[place] != IGNORE_INDEX):
        run = [ids[place] for place in places]
        runs.append((encoder.tokenizer.decode(run, clean_up_tokenization_spaces=False), len(run), supervised))
    return runs


def contact_sheet(previews: Sequence[Preview]) -> Image.Image:
    """The samples' images, each with its key, its size in pixels and its first words; RGB."""
    assert previews
    columns = min(COLUMNS, len(previews))
    rows = -(-len(previews) // columns)
    size = (columns * (_TILE[0] + _GAP) + _GAP, rows * (_TILE[1] + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    for place, preview in enumerate(previews):
        row, column = divmod(place, columns)
        sheet.paste(_tile(preview), (_GAP + column * (_TILE[0] + _GAP), _GAP + row * (_TILE[1] + _GAP)))
    return sheet


def _tile(preview: Preview) -> Image.Image:
    tile = Image.new("RGB", _TILE, _CARD)
    pen = ImageDraw.Draw(tile)
    pen.rectangle((0, 0, _TILE[0] - 1, _TILE[1] - 1), outline=_BAD if preview.problem else _FRAME)
    tile.paste(_mounted(preview), (_MARGIN, _MARGIN))
    top = _PICTURE[1] + 2 * _MARGIN
    sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in preview.images]
    note = ", ".join(sizes[:2]) + (f" and {len(sizes) - 2} more" if len(sizes) > 2 else "") or "no image"
    pen.text((_MARGIN, top), _fitted(preview.key, _font(14, bold=True)), _INK, _font(14, bold=True))
    pen.text((_MARGIN, top + _LINE), _fitted(note, _font(12)), _FAINT, _font(12))
    _write(pen, preview, top + 2 * _LINE + 4)
    return tile


def _mounted(preview: Preview) -> Image.Image:
    """The sample's pictures (at most four) inside the picture's place, each whole and in its own proportions."""
    mount = Image.new("RGB", _PICTURE, _MOUNT)
    shown = preview.images[:4]
    across, down = (1 if len(shown) < 2 else 2), (1 if len(shown) < 3 else 2)
    cell = (_PICTURE[0] // across, _PICTURE[1] // down)
    for place, pixels in enumerate(shown):
        row, column = divmod(place, across)
        image = _scaled(Image.fromarray(pixels), (cell[0] - 2 * (across > 1), cell[1] - 2 * (down > 1)))
        left, top = (cell[0] - image.width) // 2, (cell[1] - image.height) // 2
        mount.paste(image, (column * cell[0] + left, row * cell[1] + top))
    if not shown:
        word = preview.problem.split(":")[0] if preview.problem else "text only"
        colour = _BAD if preview.problem else _FAINT
        ImageDraw.Draw(mount).text((_PICTURE[0] // 2, _PICTURE[1] // 2), word, colour, _font(16), anchor="mm")
    return mount


def _scaled(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    zoom = min(box[0] / image.width, box[1] / image.height)
    if zoom < 1:
        return image.resize((max(1, round(image.width * zoom)), max(1, round(image.height * zoom))), reducing_gap=2.0)
    whole = min(int(zoom), _LARGEST_ZOOM)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)


def _write(pen: ImageDraw.ImageDraw, preview: Preview, top: int) -> None:
    """The first words of every message as far as there is room: its role in colour, then the text."""
    said = [("problem", preview.problem)] if preview.problem else preview.said
    room, font, bold = _LINES, _font(13), _font(13, bold=True)
    for role, text in said:
        # Of a long question two lines are enough: the answer is to be seen as well.
        allowed = min(room, room if role == said[-1][0] or len(said) == 1 else 2)
        if allowed == 0:
            return
        head = f"{role}  "
        lines = _wrapped(" ".join(text.split()), font, allowed, int(bold.getlength(head)))
        for number, line in enumerate(lines):
            y, left = top + (_LINES - room + number) * _LINE, _MARGIN
            if number == 0:
                pen.text((left, y), head, _ROLES.get(role, _BAD), bold)
                left += int(bold.getlength(head))
            pen.text((left, y), line, _INK, font)
        room -= len(lines)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, most: int, indent: int) -> list[str]:
    """Lines no wider than the picture, the first one shorter by `indent`; what is left over ends in dots."""
    lines: list[str] = []
    words = visible(text[: most * 120]).split(" ")
    while words and len(lines) < most:
        width = _PICTURE[0] - (indent if not lines else 0)
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        last = len(lines) == most - 1
        line = " ".join(words if last else words[:taken])
        lines.append(_fitted(line, font, width))
        words = words[taken:]
    return lines


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int = _PICTURE[0]) -> str:
    """The text, or as much of its beginning as fits into `width` pixels, with dots behind it."""
    text = visible(text)
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low].rstrip() + "…"


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _spoken(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "<image> " for part in content)


