"""Previews of samples: a contact sheet of their images, and their texts with supervised tokens marked."""

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
"""Tiles in a row of a contact sheet, or fewer."""

_PICTURE = (300, 225)
_GAP, _MARGIN, _LINE, _LINES = 16, 10, 18, 6
_TILE = (_PICTURE[0] + 2 * _MARGIN, _PICTURE[1] + (_LINES + 2) * _LINE + 3 * _MARGIN)
_PAPER, _CARD, _FRAME, _MOUNT = (240, 240, 238), (255, 255, 255), (205, 205, 202), (228, 228, 226)
_INK, _FAINT, _BAD = (25, 25, 25), (120, 120, 120), (190, 30, 30)
_ROLES = {"system": (120, 90, 160), "user": (40, 90, 170), "assistant": (20, 120, 60), "caption": (20, 120, 60)}
_LARGEST_ZOOM = 4


@dataclass(frozen=True)
class Preview:
    """One sample to look at.

    Attributes:
        key: the sample's key.
        images: its decoded images, at most as large as they are drawn.
        texts: (role, text) of each message, or ("caption", text).
        messages: its messages; empty for a caption.
        problem: why the sample cannot be used; empty for a good sample.
        sizes: width and height of its images; empty where `images` have their own sizes.
    """

    key: str
    images: tuple[NDArray[np.uint8], ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    messages: tuple[Message, ...] = ()
    problem: str = ""
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def pixels(self) -> str:
        """Returns the sizes of the images in pixels, such as 640 x 480, 32 x 32."""
        sizes = self.sizes or tuple((image.shape[1], image.shape[0]) for image in self.images)
        return ", ".join(f"{width} x {height}" for width, height in sizes) or "no image"


def preview_sample(store: SampleStore, i: int) -> Preview:
    """Returns the preview of sample i; for a sample that cannot be used, it only contains the problem."""
    key = store.key(i)
    try:
        record = store.record(i)
        small, sizes = [], []
        for image in store.each_image(i):  # one at a time, since they may be large
            sizes.append((image.shape[1], image.shape[0]))
            small.append(_shrunk(image))
        images = tuple(small)
        content = content_of(store, i, record)
    except SampleError as error:
        return Preview(key, problem=f"{error.reason}{f': {error.detail}' if error.detail else ''}")
    if isinstance(content, str):
        return Preview(key, images, (("caption", content),), sizes=tuple(sizes))
    texts = tuple((message["role"], _text(message)) for message in content)
    return Preview(key, images, texts, tuple(content), sizes=tuple(sizes))


def supervised_runs(preview: Preview, encoder: ConversationEncoder) -> list[tuple[str, int, bool]]:
    """Encodes the sample as training does; returns (text, number of tokens, whether supervised) per run of tokens.

    Raises:
        DataError: the encoder refuses the sample.
        ConfigError: a tokenizer without a usable chat template or end token.
    """
    if preview.messages:
        ids, labels = encoder.encode(preview.messages)
    else:
        ids, labels = encoder.caption(preview.texts[0][1], len(preview.images))
    runs = []
    for supervised, places in groupby(range(len(ids)), key=lambda place: labels[place] != IGNORE_INDEX):
        run = [ids[place] for place in places]
        runs.append((encoder.tokenizer.decode(run, clean_up_tokenization_spaces=False), len(run), supervised))
    return runs


def contact_sheet(previews: Sequence[Preview]) -> Image.Image:
    """Draws the samples' images, each with its key, its size in pixels and the beginning of its texts; RGB.

    Raises:
        ValueError: there is no sample.
    """
    if not previews:
        raise ValueError("a contact sheet needs at least one sample")
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
    sizes = preview.pixels.split(", ")
    note = ", ".join(sizes[:2]) + (f" and {len(sizes) - 2} more" if len(sizes) > 2 else "")
    pen.text((_MARGIN, top), _fitted(preview.key, _font(14, bold=True)), _INK, _font(14, bold=True))
    pen.text((_MARGIN, top + _LINE), _fitted(note, _font(12)), _FAINT, _font(12))
    _write(pen, preview, top + 2 * _LINE + 4)
    return tile


def _mounted(preview: Preview) -> Image.Image:
    """Draws the sample's images (at most four) into the image area, each whole and with its aspect ratio."""
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


def _shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image not larger than it is drawn."""
    if pixels.shape[1] <= _PICTURE[0] and pixels.shape[0] <= _PICTURE[1]:
        return pixels
    return np.asarray(_scaled(Image.fromarray(pixels), _PICTURE))


def _scaled(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    zoom = min(box[0] / image.width, box[1] / image.height)
    if zoom < 1:
        return image.resize((max(1, round(image.width * zoom)), max(1, round(image.height * zoom))), reducing_gap=2.0)
    whole = min(int(zoom), _LARGEST_ZOOM)
    return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)


def _write(pen: ImageDraw.ImageDraw, preview: Preview, top: int) -> None:
    """Writes the beginning of every message as far as there is room: its role in colour, then the text."""
    texts = [("problem", preview.problem)] if preview.problem else preview.texts
    room, font, bold = _LINES, _font(13), _font(13, bold=True)
    for role, text in texts:
        # A long question gets two lines, so that the answer is visible too.
        allowed = min(room, room if role == texts[-1][0] or len(texts) == 1 else 2)
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


def _wrapped(text: str, font: ImageFont.FreeTypeFont, max_lines: int, indent: int) -> list[str]:
    """Wraps text to the image width, the first line shorter by `indent`; the last line may end with an ellipsis."""
    lines: list[str] = []
    words = visible(text[: max_lines * 120]).split(" ")
    while words and len(lines) < max_lines:
        width = _PICTURE[0] - (indent if not lines else 0)
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        last = len(lines) == max_lines - 1
        line = " ".join(words if last else words[:taken])
        lines.append(_fitted(line, font, width))
        words = words[taken:]
    return lines


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int = _PICTURE[0]) -> str:
    """Returns the text, shortened with an ellipsis where it is wider than `width` pixels."""
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


def _text(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "<image> " for part in content)
