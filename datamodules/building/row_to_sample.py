"""Turns one row of a source into one sample of a shard, after all checks."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from datamodules.building.splits import place_of, split_at
from datamodules.encoding.messages import check_messages, image_parts, parts_of
from datamodules.encoding.placeholders import find_placeholder
from datamodules.images.decoding import refuse_many_pixels, to_png, verify_image
from datamodules.images.limits import MAX_IMAGES
from datamodules.sources.base import Ignored, Refusal, Row, Source
from datamodules.sources.refusals import row_id
from datamodules.sources.row_files import MAX_ROW_BYTES
from datamodules.storage.writer import encode_record, image_names, tar_members
from fvl_lightning.core.errors import DataError

_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""The formats that training reads; images of others become PNG."""

_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

_MAX_DETAIL = 500


@dataclass(frozen=True)
class BuiltSample:
    """One sample: its split, number of images, stretch of tar, the row's unused fields, and its place (splits.py)."""

    split: str
    images: int
    members: bytes
    unused: tuple[str, ...] = ()
    place: float = 0.0


Outcome = BuiltSample | Refusal | Ignored
"""The result of a row, or of content that is no row."""


class _Refused(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        self.refusal = Refusal(reason, detail)


def prepare_chunk(source: Source, number: int, chunk: Any, splits: Mapping[str, float]) -> Iterator[Outcome]:
    """Yields every row of chunk `number`, in order, as a sample or a refusal; then the ignored content.

    Keys have chunk and row (00000012-000034), so that they do not depend on how the build is divided. Reasons are
    "no text", "bad text", "placeholder", "row too large", "bad messages", "bad record", "image count",
    "too many images", "broken image", and the source's own.
    """
    for position, row in enumerate([chunk] if isinstance(chunk, Refusal | Ignored) else source.rows(chunk)):
        if isinstance(row, Ignored):
            yield row
            continue
        if isinstance(row, Refusal):
            yield _short(row)
            continue
        try:
            yield _prepare(row, f"{number:08d}-{position:06d}", splits)
        except _Refused as refused:
            yield _short(replace(refused.refusal, where=row.where, id=row_id(row.record)))


def _prepare(row: Row, key: str, splits: Mapping[str, float]) -> BuiltSample:
    text = _encode(row.record)
    _check_text(row.record, len(row.images))
    if len(row.images) > MAX_IMAGES:
        raise _Refused("too many images", f"{len(row.images)}, at most {MAX_IMAGES} are taken")
    try:
        refuse_many_pixels(row.images)
    except DataError as error:
        raise _Refused("image too large", str(error)) from None
    images = [_image(i, content) for i, content in enumerate(row.images)]
    names = image_names([extension for extension, _ in images])
    members = {"json": text, **{name: content for name, (_, content) in zip(names, images, strict=True)}}
    place = place_of(row.record, row.images)
    return BuiltSample(split_at(place, splits), len(images), tar_members(key, members), row.unused, place)


def _encode(record: Mapping[str, Any]) -> bytes:
    try:
        text = encode_record(record)
    except UnicodeEncodeError as error:
        raise _Refused("bad text", _half(error.object[error.start])) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _Refused("bad record", str(error)) from None
    if _ESCAPED_NUL.search(text):
        raise _Refused("bad text", "a NUL character")
    if len(text) > MAX_ROW_BYTES:
        raise _Refused("row too large", f"{len(text)} bytes of JSON, at most {MAX_ROW_BYTES} are read")
    return text


def _half(char: str) -> str:
    """Describes a lone surrogate: half a character, or a byte that could not be decoded."""
    byte = ord(char) - 0xDC00
    return f"the byte 0x{byte:02x}, which is no UTF-8" if 0x80 <= byte <= 0xFF else f"half a character ({char!a})"


def _check_text(record: Mapping[str, Any], images: int) -> None:
    """Refuses what training would refuse in `messages` and `caption`; there must be one of them."""
    caption, messages = record.get("caption"), record.get("messages")
    if caption is not None and not isinstance(caption, str):
        raise _Refused("bad text", f"caption is a {type(caption).__name__}")
    _check_placeholders(caption or "")
    if messages is None:
        if not (caption or "").strip():
            raise _Refused("no text")
        return
    wrong = check_messages(messages)
    if wrong:
        raise _Refused("bad messages", wrong)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise _Refused("bad messages", "no message of the assistant")
    if image_parts(answers):
        raise _Refused("bad messages", "an answer holds an image")
    if image_parts(messages) != images:
        raise _Refused("image count", f"{images} images, the messages speak of {image_parts(messages)}")
    for message in messages:
        for part in parts_of(message):
            _check_placeholders(part.get("text", ""))


def _check_placeholders(text: str) -> None:
    word = find_placeholder(text)
    if word:
        raise _Refused("placeholder", f"{word!r} is left in a text: it stands for nothing that the row has")


def _image(i: int, content: bytes) -> tuple[str, bytes]:
    """Returns extension and content of an image: unchanged if training can read it, else as PNG."""
    try:
        extension = _EXTENSIONS.get(verify_image(content).format)
        return (extension, content) if extension else ("png", to_png(content))
    except DataError as error:
        raise _Refused("broken image", f"image {i}: {error}") from None


def _short(refusal: Refusal) -> Refusal:
    """Returns the refusal cut to the length of a log line."""
    own = refusal.id[:_MAX_DETAIL] if isinstance(refusal.id, str) else refusal.id
    return replace(refusal, detail=refusal.detail[:_MAX_DETAIL], where=refusal.where[:_MAX_DETAIL], id=own)
