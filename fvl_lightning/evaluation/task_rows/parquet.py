"""Rows of Parquet files, on this machine or on the hub."""

import importlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from datamodules.hub.address import HubFile
from datamodules.hub.copies import local_copy
from datamodules.sources.base import Refusal
from datamodules.sources.image_files import MAX_IMAGE_BYTES
from datamodules.sources.parquet_files import OpenParquet, Place, all_values, is_plain, unreadable
from fvl_lightning.core.errors import ConfigError, DataError, first_line
from fvl_lightning.evaluation.task_rows.base import Images, TaskRow, TaskRows
from fvl_lightning.evaluation.task_rows.fields import root_of

_ROWS_AT_A_TIME, _IMAGES_AT_A_TIME = 1024, 16


@dataclass(frozen=True)
class _File:
    """An open file's layout: its place, the rows of each row group, its columns with images, and those with values."""

    place: Place
    groups: tuple[int, ...]
    images: tuple[str, ...]
    values: tuple[str, ...]
    others: tuple[str, ...] = field(default=())

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.values, *self.images, *self.others)


class ParquetRows(TaskRows):
    """Rows of Parquet files. Columns of images are read by row group, and only when they are needed.

    Args:
        places: the files, in order.
        used: fields that are read although they hold lists or mappings.

    Raises:
        DataError: a file cannot be read.
        ConfigError: the files have different columns.
    """

    def __init__(self, places: Sequence[Place], used: Sequence[str]) -> None:
        self._files = [_layout(place, used) for place in places]
        first = self._files[0]
        self.where = str(first.place) + (f" and {len(places) - 1} more files" if len(places) > 1 else "")
        self.fields, self.image_fields = first.columns, frozenset(first.images)
        for file in self._files:
            if set(file.columns) != set(first.columns):
                odd = sorted(set(file.columns) ^ set(first.columns))[0]
                raise ConfigError(f"data.files: {first.place} and {file.place} differ in the column '{odd}'")
        self._starts = list(accumulate((sum(file.groups) for file in self._files), initial=0))

    def rows(self) -> Iterator[TaskRow]:
        """Yields all rows; see TaskRows."""
        number = 0
        for file in self._files:
            expected = number + sum(file.groups)
            first = number
            for values in _read(file, range(len(file.groups)), file.values, _ROWS_AT_A_TIME):
                where = f"{file.place.name}, row {number - first}"
                if isinstance(values, Refusal):
                    raise DataError(f"{where}: {values.reason} ({values.detail})")
                yield TaskRow(number, where, values)
                number += 1
            if number != expected:
                raise DataError(f"{file.place} ends after {number - first} of its {expected - first} rows")

    def read_together(self, row: TaskRow) -> range:
        """Returns the rows from the beginning of its row group to its end, which are read together."""
        _, _, first, last = self._group_of(row.number)
        return range(first, last)

    def images(self, rows: Sequence[TaskRow], fields: Sequence[str]) -> Iterator[Sequence[Images]]:
        """Yields the images of these rows; see TaskRows."""
        left = list(rows)
        while left:
            file, group, first, last = self._group_of(left[0].number)
            here = [row for row in left if row.number < last]
            yield from _images_of(_at_hand(file), group, [(row.number - first, row) for row in here], fields)
            left = left[len(here) :]

    def _group_of(self, number: int) -> tuple[_File, int, int, int]:
        """Returns the file of a row, its row group, and the numbers of the group's first row and of the one after."""
        index = bisect_right(self._starts, number) - 1
        file, first = self._files[index], self._starts[index]
        for group, rows in enumerate(file.groups):
            if number < first + rows:
                return file, group, first, first + rows
            first += rows
        raise AssertionError(f"row {number} of {self._starts[-1]}")


def _at_hand(file: _File) -> _File:
    """Returns a local file; one of the hub is copied first, since its images are read more than once."""
    return replace(file, place=local_copy(file.place)) if isinstance(file.place, HubFile) else file


def _layout(place: Place, used: Sequence[str]) -> _File:
    with OpenParquet(place) as opened:
        schema, metadata = opened.file.schema_arrow, opened.file.metadata
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise DataError(f"{place}: {schema.names.count(name)} columns are named '{name}'")
    wanted = {root_of(name, schema.names) for name in used}
    images = [column.name for column in schema if _holds_images(column.type)]
    values = [column.name for column in schema if column.name not in images]
    read = [column.name for column in schema if is_plain(column.type) or column.name in wanted]
    return _File(
        place,
        groups,
        tuple(images),
        tuple(name for name in values if name in read),
        tuple(name for name in values if name not in read),
    )


def _holds_images(kind: Any) -> bool:
    """Returns whether a column holds bytes, structs with a field `bytes`, or lists of either."""
    types = importlib.import_module("pyarrow.types")
    kind = getattr(kind, "storage_type", kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = getattr(kind.value_type, "storage_type", kind.value_type)
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return bool(place >= 0 and _is_binary(types, kind.field(place).type))
    return _is_binary(types, kind)


def _is_binary(types: Any, kind: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _read(file: _File, groups: Sequence[int], columns: Sequence[str], rows: int) -> Iterator[dict[str, Any] | Refusal]:
    """Yields the values of all rows of some row groups; DataError where they cannot be read."""
    with OpenParquet(file.place) as opened:
        try:
            batches = opened.file.iter_batches(rows, row_groups=list(groups), columns=list(columns))
            yield from all_values(batches, columns)
        except unreadable() as error:
            opened.raise_network_error()
            raise DataError(f"{file.place} is cut short or damaged: {first_line(error)}") from None


def _images_of(
    file: _File, group: int, wanted: Sequence[tuple[int, TaskRow]], fields: Sequence[str]
) -> Iterator[Sequence[Images]]:
    """Yields the images of rows of one row group, each with its number in the group."""
    numbers = iter(wanted)
    number, row = next(numbers)
    for place, values in enumerate(_read(file, [group], fields, _IMAGES_AT_A_TIME)):
        if place != number:
            continue
        if isinstance(values, Refusal):
            raise DataError(f"{row.where}: {values.reason} ({values.detail})")
        images = [list(_cell(values[name], name, row.where)) for name in fields]
        if sum(len(image) for cell in images for image in cell if image is not None) > MAX_IMAGE_BYTES:
            raise DataError(f"{row.where}: its images have more than {MAX_IMAGE_BYTES} bytes")
        yield images
        following = next(numbers, None)
        if following is None:
            return
        number, row = following
    raise DataError(f"{file.place} ends before row {number} of row group {group}")


def _cell(value: Any, name: str, where: str) -> Iterator[bytes | None]:
    """Yields the images in a cell: all of a list, and else a single one, which is None for an empty cell."""
    for one in value if isinstance(value, list) else [value]:
        content = one.get("bytes") if isinstance(one, dict) else one
        if content is None and isinstance(one, dict) and one.get("path"):
            raise DataError(f"{where}: field '{name}' names the image {one['path']!r}, whose bytes it does not have")
        yield content or None
