"""Parquet files of this machine or of the hub: their row groups, and the rows in them."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from datamodules.hub.address import HubFile
from datamodules.hub.requests import HubReader
from datamodules.sources.base import Refusal
from fvl_lightning.core.errors import DataError, first_line

_BUFFER, _HUB_BUFFER = 2**20, 2**23
"""Bytes of a column that are read ahead; without it, pyarrow holds a whole row group in memory."""

Place = Path | HubFile
"""A file of this machine, or of the hub."""


class UnreadableFileError(DataError):
    """A file that cannot be read as Parquet, while others can."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file: those of text and images (None where there are none), and all that are read."""

    layout: str
    text: str
    images: str | None
    read: tuple[str, ...]


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file.

    Attributes:
        place: the file.
        number: the number of the row group.
        first: the number of its first row in the file.
        rows: its number of rows.
        columns: the columns to read.
        others: the columns that are not read, each with its number of filled rows.
        beyond: its last rows that are not read, because of max_rows.
    """

    place: Place
    number: int
    first: int
    rows: int
    columns: Columns
    others: tuple[tuple[str, int], ...]
    beyond: int = 0


class OpenParquet:
    """An open file: `file` is pyarrow's ParquetFile.

    Raises:
        UnreadableFileError: it cannot be read as Parquet.
        DataError: the hub cannot be reached, or refuses.
    """

    def __init__(self, place: Place) -> None:
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise DataError("source 'parquet' needs the package pyarrow, which is not installed") from None
        self._reader = HubReader(place) if isinstance(place, HubFile) else None
        buffer = _BUFFER if self._reader is None else _HUB_BUFFER
        try:
            self.file = parquet.ParquetFile(self._reader or place, buffer_size=buffer, pre_buffer=False)
        except unreadable() as error:
            self.raise_network_error()
            raise UnreadableFileError(f"{place} cannot be read as Parquet: {first_line(error)}") from None

    def raise_network_error(self) -> None:
        """Raises the DataError of a read over the network that has failed; pyarrow may have replaced it."""
        if self._reader is not None and self._reader.error is not None:
            raise self._reader.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.file.close()


def row_groups(place: Place, file: Any, columns: Columns) -> Iterator[RowGroup]:
    """Yields the row groups of a pyarrow ParquetFile."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    is_null = importlib.import_module("pyarrow.types").is_null
    named = dict.fromkeys(field.name for field in file.schema_arrow if not is_null(field.type))
    others = [name for name in named if name not in columns.read]
    firsts = accumulate((group.num_rows for group in groups), initial=0)
    for number, (group, first) in enumerate(zip(groups, firsts, strict=False)):
        filled = tuple((name, rows) for name in others if (rows := _filled(group, name)))
        yield RowGroup(place, number, first, group.num_rows, columns, filled)


def _filled(group: Any, name: str) -> int:
    """Returns the number of rows in which a column is filled: 0 where the file's statistics show it, else all rows."""
    leaves = [group.column(number) for number in range(group.num_columns)]
    own = [leaf for leaf in leaves if leaf.path_in_schema == name or leaf.path_in_schema.startswith(f"{name}.")]
    nulls = [leaf.statistics.null_count if leaf.statistics else None for leaf in own]
    if nulls and all(null is not None and null >= leaf.num_values for null, leaf in zip(nulls, own, strict=True)):
        return 0
    return int(group.num_rows)


def all_values(batches: Iterable[Any], columns: Sequence[str]) -> Iterator[dict[str, Any] | Refusal]:
    """Yields {column: value} of every row of pyarrow's batches; a Refusal for one that cannot be decoded."""
    for batch in batches:
        for number in range(batch.num_rows):
            yield _values(batch, number, columns)


def unreadable() -> tuple[type[Exception], ...]:
    """Returns the errors that pyarrow raises for a broken file."""
    return OSError, importlib.import_module("pyarrow").ArrowException


def is_plain(kind: Any) -> bool:
    """Returns whether a column holds texts, numbers or booleans, in any encoding."""
    types = importlib.import_module("pyarrow.types")
    kind = getattr(kind, "storage_type", kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, getattr(types, "is_string_view", types.is_string))
    return any(is_one(kind) for is_one in (*texts, types.is_integer, types.is_floating, types.is_boolean))


def _values(batch: Any, number: int, columns: Sequence[str]) -> dict[str, Any] | Refusal:
    try:
        return {name: batch.column(name)[number].as_py() for name in columns}
    except (ValueError, OverflowError) as error:  # invalid UTF-8 in a column of text
        return Refusal("bad row", first_line(error))
