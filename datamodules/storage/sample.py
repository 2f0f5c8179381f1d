"""Samples as their tars hold them, what is read of them, and the error for one that cannot be used."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodules.images.decoding import refuse_many_pixels
from datamodules.images.tiling import Size, TiledImage, upright_size
from fvl_lightning.core.errors import DataError

Decode = Callable[[bytes], NDArray[np.uint8] | TiledImage]
"""An encoded image -> [height, width, 3] RGB, or its tiles; raises DataError where it cannot be decoded."""

Read = TypeVar("Read")

_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_UNSPEAKABLE = re.compile("[\0\ud800-\udfff]")


class SampleError(DataError):
    """A sample that cannot be used; `reason` is a short category to count by."""

    def __init__(self, shard: str, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"sample '{key}' in {shard}: {reason}{f' ({detail})' if detail else ''}")
        self.shard, self.key, self.reason, self.detail = shard, key, reason, detail

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str, str, str]]:
        return SampleError, (self.shard, self.key, self.reason, self.detail)


class RawSample(NamedTuple):
    """A sample as its tar holds it: the JSON, the text, and the encoded images in order, which are not copied."""

    key: str
    record: bytes | None
    text: bytes | None
    images: list[memoryview]


class Samples(ABC):
    """Numbered samples, wherever they lie: all that turning one into tokens and pixels needs.

    Attributes:
        decode: turns an encoded image into pixels.
    """

    decode: Decode

    @abstractmethod
    def key(self, i: int) -> str:
        """Returns the key of sample i."""

    @abstractmethod
    def error(self, i: int, reason: str, detail: str = "") -> SampleError:
        """Returns the error for sample i, naming its shard and key."""

    @abstractmethod
    def text_member(self, i: int) -> tuple[str, bytes] | None:
        """Returns suffix and content of the sample's JSON, else of its text; None where it has neither."""

    @abstractmethod
    def image_count(self, i: int) -> int:
        """Returns how many images the sample has; nothing is read."""

    @abstractmethod
    def encoded_images(self, i: int) -> list[tuple[str, bytes]]:
        """Returns (suffix, encoded image) of the sample's images in order."""

    def record(self, i: int) -> dict[str, Any]:
        """Returns the sample's JSON; for a sample with only a text, {"caption": that text}.

        Raises:
            SampleError: no such member, not a JSON object, or a text that is not UTF-8, has a NUL or half a character.
            DataError: as of `images`.
        """
        member = self.text_member(i)
        if member is None:
            raise self.error(i, "no JSON")
        suffix, content = member
        text = self._text(i, content)
        if suffix == "txt":
            return {"caption": text.strip()}
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(i, "bad JSON", str(error)) from None
        if not isinstance(record, dict):
            raise self.error(i, "bad JSON", f"expected an object, found {type(record).__name__}")
        # Only escapes can write what UTF-8 cannot, and few records have any that could.
        if _SUSPECT.search(text) and any(map(_UNSPEAKABLE.search, _strings(record))):
            raise self.error(i, "bad text", "a NUL, or half of a surrogate pair")
        return record

    def images(self, i: int) -> list[NDArray[np.uint8]]:
        """Returns the sample's images in order, or the tiles that `decode` makes of them, each [height, width, 3] RGB.

        Raises:
            SampleError: an image that cannot be decoded, too many pixels together, or a tar that has become shorter.
            DataError: the shard cannot be read, or is not the one its index was made of.
        """
        return list(self.each_image(i))

    def each_image(self, i: int) -> Iterator[NDArray[np.uint8]]:
        """As `images`, one after the other."""
        encoded = self.encoded_images(i)
        self.check_together(i, [content for _, content in encoded])
        for suffix, content in encoded:
            decoded = self._checked(i, suffix, self.decode, content)
            yield from decoded.tiles if isinstance(decoded, TiledImage) else [decoded]

    def image_sizes(self, i: int) -> list[Size]:
        """Returns width and height of the sample's images in order, by their headers; errors as of `images`."""
        return [self._checked(i, suffix, upright_size, content) for suffix, content in self.encoded_images(i)]

    def check_together(self, i: int, images: Sequence[bytes]) -> None:
        """Raises SampleError if the sample's encoded images have too many pixels together."""
        try:
            refuse_many_pixels(images)
        except DataError as error:
            raise self.error(i, "image too large", str(error)) from None

    def _text(self, i: int, content: bytes) -> str:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(i, "bad text", f"not UTF-8 at byte {error.start}") from None
        if "\0" in text:
            raise self.error(i, "bad text", f"NUL at character {text.index(chr(0))}")
        return text

    def _checked(self, i: int, suffix: str, read: Callable[[bytes], Read], encoded: bytes) -> Read:
        """Returns what `read` returns for an encoded image; raises SampleError where it cannot be read."""
        try:
            return read(encoded)
        except DataError as error:
            raise self.error(i, "broken image", f"{suffix}: {error}") from None


def spread(count: int, number: int) -> list[int]:
    """Returns the numbers of `number` samples out of `count`, spread evenly from 0 on; all where there are no more."""
    number = min(count, number)
    return [i * count // number for i in range(number)]


def _strings(value: Any) -> Iterator[str]:
    """Yields all texts in a parsed JSON, keys included."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            left += [*found, *found.values()]
        elif isinstance(found, list):
            left += found
