"""The images of the questions of a task: numbered by their content, and read again when they are needed."""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.images.decoding import image_size
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.task_rows.base import Images, TaskRow, TaskRows
from fvl_lightning.evaluation.task_rows.fields import texts_at
from fvl_lightning.evaluation.task_rows.named_images import NamedImages

log = logging.getLogger(__name__)

CACHE_BYTES = 256 * 2**20
"""Encoded images that are kept in memory."""

Numbers = Sequence[int | None]
"""The numbers of a row's images; None for a place that is empty."""


@dataclass(frozen=True)
class _ImagePlace:
    """The first row with an image: its index among the rows that are asked, and the image's index in the row."""

    asked: int
    place: int


class RowImages:
    """The images of some rows of a task; all are read once, to find equal ones by their content.

    Attributes:
        of_rows: the numbers of each row's images, in the rows' order.
        hashes: the sha256 of each image.

    Args:
        rows: the rows of the task's files.
        asked: those whose images count, in order.
        fields: the fields with images.
        named: the images that rows name.

    Raises:
        ConfigError: a field names images, and data.images does not say where they are.
        DataError: an image is missing or cannot be decoded.
    """

    def __init__(
        self, rows: TaskRows, asked: Sequence[TaskRow], fields: Sequence[str], named: NamedImages | None
    ) -> None:
        self._rows, self._asked, self._fields, self._named = rows, asked, fields, named
        self._embedded = [name for name in fields if name in rows.image_fields]
        if named is None and len(self._embedded) < len(fields):
            name = next(name for name in fields if name not in rows.image_fields)
            raise ConfigError(
                f"data.images: field '{name}' of {rows.where} names images; write the folder or Parquet files with them"
            )
        self._by_number = {row.number: index for index, row in enumerate(asked)}
        self._places: list[_ImagePlace] = []
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached, self._lock = 0, threading.Lock()
        self.hashes: list[str] = []
        self.of_rows: list[Numbers] = []
        self._number_all()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": OrderedDict(), "_cached": 0, "_lock": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update({**state, "_lock": threading.Lock()})

    def where(self, number: int) -> str:
        """Returns the file and the row of an image, for messages."""
        return self._asked[self._places[number].asked].where

    def read(self, number: int) -> bytes:
        """Returns an encoded image.

        Raises:
            DataError: it cannot be read any more, or has changed.
        """
        with self._lock:
            if number not in self._cache:
                self._load(number)
            self._cache.move_to_end(number)
            return self._cache[number]

    def _number_all(self) -> None:
        numbers: dict[str, int] = {}
        for index, images in enumerate(self._of(range(len(self._asked)))):
            found: list[int | None] = []
            for place, content in enumerate(images):
                if content is None:
                    found.append(None)
                    continue
                content_hash = hashlib.sha256(content).hexdigest()
                if content_hash not in numbers:
                    self._check(content, self._asked[index].where)
                    numbers[content_hash] = len(self.hashes)
                    self.hashes.append(content_hash)
                    self._places.append(_ImagePlace(index, place))
                found.append(numbers[content_hash])
            self.of_rows.append(tuple(found))
        without = sum(all(number is None for number in found) for found in self.of_rows)
        if self._fields and without == len(self.of_rows):
            raise DataError(f"no row of {self._rows.where} has an image in {', '.join(self._fields)}")
        if self._fields and without:
            log.warning("%s: %d of %d questions have no image", self._rows.where, without, len(self.of_rows))

    def _of(self, indexes: Sequence[int]) -> Iterator[Images]:
        """Yields the images of some of the rows that are asked, in order."""
        rows = [self._asked[index] for index in indexes]
        for row, cells in zip(rows, self._rows.images(rows, self._embedded), strict=True):
            embedded = dict(zip(self._embedded, cells, strict=True))
            yield [
                content
                for name in self._fields
                for content in (embedded[name] if name in embedded else self._named_images(row, name))
            ]

    def _named_images(self, row: TaskRow, field: str) -> Iterator[bytes]:
        assert self._named is not None, "it was checked that there are some"
        for name in texts_at(row.values, field):
            try:
                yield self._named.read(name)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None

    def _load(self, number: int) -> None:
        """Reads an image into the cache, together with the images of the rows in the same row group."""
        first = self._places[number].asked
        together = self._rows.read_together(self._asked[first]) if self._embedded else ()
        indexes = [self._by_number[row] for row in together if row in self._by_number] or [first]
        for index, images in zip(indexes, self._of(indexes), strict=True):
            for place, content in enumerate(images):
                of_place = self.of_rows[index][place] if place < len(self.of_rows[index]) else None
                if content is not None and of_place is not None:
                    self._keep(of_place, content, but=number)
        if number not in self._cache or hashlib.sha256(self._cache[number]).hexdigest() != self.hashes[number]:
            raise DataError(f"{self.where(number)}: its image has changed since the task was opened")

    def _keep(self, number: int, content: bytes, but: int) -> None:
        """Adds an image to the cache, and evicts the least recently used ones, but never image `but`."""
        if number in self._cache:
            return
        self._cache[number] = content
        self._cached += len(content)
        while self._cached > CACHE_BYTES and len(self._cache) > 1:
            oldest = next(iter(self._cache))
            if oldest == but:
                self._cache.move_to_end(oldest)
                continue
            self._cached -= len(self._cache.pop(oldest))

    def _check(self, content: bytes, where: str) -> None:
        try:
            image_size(content)
        except DataError as error:
            raise DataError(f"{where}: its image cannot be decoded: {error}") from None
