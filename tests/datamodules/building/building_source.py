"""A source for tests of the builder, as a plugin has it: rows drawn from their number, some of them broken."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from datamodules.sources.base import Refusal, Row, Source
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.registry import register


def noise(number: int, kind: str = "PNG", side: int = 12) -> bytes:
    """A picture of noise, the same for the same arguments."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def talk(images: int, answer: str) -> list[dict[str, Any]]:
    """A conversation of one turn about that many images."""
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": "what is it?"}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]


def drawn_row(number: int, side: int) -> Row | Refusal:
    """Row `number`; of every ten, six have one image, one has two, one none, and two are refused."""
    record: dict[str, Any] = {"id": number, "caption": f"noise {number} é"}
    match number % 10:
        case 3:
            return Refusal("missing image", f"photos/{number}.jpg", f"row {number}", number)
        case 4:
            return Row(record, (noise(number)[:80],))
        case 5:
            return Row({"id": number, "messages": talk(2, "two")}, (noise(number, side=side), noise(number, "JPEG")))
        case 6:
            return Row({"id": number, "messages": talk(0, f"nothing {number}")})
        case 7:
            return Row(record, (noise(number, "GIF", side),))
        case 8:
            return Row(record, (noise(number % 40, "WEBP", side),))
    return Row(record, (noise(number, side=side),))


@register("source", "building_test")
class BuildingTestSource(Source):
    @dataclass
    class Config:
        rows: int = 100
        rows_per_chunk: int = 8
        side: int = 12
        only_broken: bool = False
        breaks_at: int | None = None
        unreadable: bool = False

    def chunks(self) -> Iterator[range | Refusal]:
        numbers = range(self.config.rows)
        size = self.config.rows_per_chunk
        first = [Refusal("unreadable file", "no tar", "a.tar")] if self.config.unreadable else []
        return iter([*first, *(numbers[i : i + size] for i in range(0, len(numbers), size))])

    def rows(self, chunk: range) -> Iterator[Row | Refusal]:
        for number in chunk:
            if number == self.config.breaks_at:
                raise DataError("rows.json is gone")
            row = drawn_row(number, self.config.side)
            if self.config.only_broken and isinstance(row, Row):
                row = Row(row.record, (b"no image",) * 2)
            yield row
