"""Image datasets in Parquet, as on the Hugging Face hub, with the images in a column."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.base import Ignored, Inputs, Refusal, Row, Source
from datamodules.sources.files import check_file, check_size, find_files, sort_out
from datamodules.sources.media import FIELDS as MEDIA_FIELDS
from datamodules.sources.media import check_media
from datamodules.sources.records import (
    caption,
    from_conversations,
    from_messages,
    from_texts,
    metadata,
    part_fields,
    turn_fields,
    turns_of,
)
from datamodules.sources.refusals import Refused, attempt
from fvl_lightning.core.config.field_types import PathsText
from fvl_lightning.core.errors import DataError, first_line, nearest
from fvl_lightning.core.registry import register

_ROWS_AT_A_TIME = 16
_TURNS = {
    "conversations": ("from", "value"),
    "messages": ("role", "content"),
    "texts": ("user", "assistant", "source"),
}
"""The fields of a turn that are read, by layout."""
_BUFFER = 2**20
"""Bytes of a column that are read ahead; without it, pyarrow holds a whole row group in memory."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file.

    Attributes:
        path: the file.
        number: the number of the row group.
        first: the number of its first row in the file.
        rows: its number of rows.
        columns: the columns to read.
        others: the columns that are not read, each with its number of filled rows.
    """

    path: str
    number: int
    first: int
    rows: int
    columns: tuple[str, ...]
    others: tuple[tuple[str, int], ...]


@register("source", "parquet")
class ParquetSource(Source):
    """Rows with their images in a column, as {"bytes": ..., "path": ...} or plain bytes, one or a list of them.

    Columns of text, numbers and booleans are kept as metadata; the names of all others are counted. A path without
    bytes is never followed. A row without images that names media in another column is refused, and so is one with
    video or audio.
    """

    @dataclass
    class Config:
        """Files, and the contents of their columns."""

        file: PathsText
        """The .parquet files: a path, a glob such as data/train-*.parquet, or a list of them."""
        layout: Literal["messages", "conversations", "texts", "caption"]
        """messages: role and content, a text or parts. conversations: LLaVA's from and value, with <image> in the
        text. texts: the Cauldron's user and assistant, images at <image> or else before the first question. caption:
        a text. Conversations may be JSON in a text, or one mapping of lists."""
        images: str | None = "images"
        """Column with the images; null where there are none."""
        text: str | None = None
        """Column with the conversation or caption; null for the one with the layout's name."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[RowGroup | Refusal]:
        """Returns the row groups of every file."""
        chunks: list[RowGroup | Refusal] = []
        for found in sort_out(find_files(self.config.file, (".parquet",)), _check):
            if isinstance(found, Refusal):
                chunks.append(found)
                continue
            with _open(found) as file:
                chunks += _row_groups(found, file, self._columns(found, file.schema_arrow))
        return iter(chunks)

    def inputs(self) -> Inputs:
        """Returns the files, which hold the images too."""
        return Inputs(tuple(find_files(self.config.file, (".parquet",))))

    def rows(self, chunk: RowGroup) -> Iterator[Row | Refusal | Ignored]:
        """Yields the rows of a group, with a few in memory at a time; all unreadable rows are one Refusal."""
        with _open(Path(chunk.path)) as file:
            name, read, reason = Path(chunk.path).name, 0, "the group ends before them"
            batches = file.iter_batches(_ROWS_AT_A_TIME, row_groups=[chunk.number], columns=list(chunk.columns))
            try:
                for batch in batches:
                    for number in range(batch.num_rows):
                        values = _values(batch, number, chunk.columns)
                        yield attempt(self._row, values, f"{name}, row {chunk.first + read}")
                        read += 1
            except _unreadable() as error:
                reason = first_line(error)
            lost = chunk.rows - read
            if lost:
                detail = f"{lost} rows from here to the end of row group {chunk.number}: {reason}"
                yield Refusal("unreadable rows", detail, f"{name}, row {chunk.first + read}", rows=lost)
        yield from (Ignored(f"columns '{column}'", count) for column, count in chunk.others)

    def _row(self, row: dict[str, Any]) -> Row:
        config = self.config
        column = config.text or config.layout
        value = row[column]
        images = _images(row[config.images]) if config.images else ()
        record, unused = metadata(row, used=(column, config.images or ""))
        # A recipe without a column of images states that rows have none, so images elsewhere are not refused.
        used, has_images = (column, config.images or ""), bool(images) or config.images is None
        check_media(row, has_images, used)
        if config.layout == "caption":
            return Row({**record, "caption": caption(value)}, images, unused=unused)
        for turn in turns_of(value):
            check_media(turn, has_images, used=_TURNS[config.layout])
        if config.layout == "conversations":
            record["messages"] = from_conversations(value)
        elif config.layout == "messages":
            record["messages"] = from_messages(value)
        else:
            record["messages"] = from_texts(value, len(images))
            first = turns_of(value)[0].get("source")
            record |= {"source": first} if isinstance(first, str) else {}
        unused += turn_fields(column, value, used=_TURNS[config.layout])
        if config.layout == "messages":
            unused += part_fields(column, value)
        return Row(record, images, unused=unused)

    def _columns(self, path: Path, schema: Any) -> tuple[str, ...]:
        """Returns the columns to read: the two of the recipe, and all that may be metadata."""
        named = [name for name in (self.config.images, self.config.text or self.config.layout) if name]
        for name in named:
            if schema.names.count(name) > 1:
                raise DataError(f"{path}: {schema.names.count(name)} columns are named '{name}'")
            if name not in schema.names:
                close = nearest(name, schema.names)
                hint = f"; did you mean '{close}'?" if close else ""
                raise DataError(f"{path}: no column '{name}', there are {', '.join(schema.names)}{hint}")
        metadata_of = (field.name for field in schema if _is_plain(field.type) or field.name in MEDIA_FIELDS)
        return tuple(dict.fromkeys([*named, *(name for name in metadata_of if schema.names.count(name) == 1)]))


def _is_plain(kind: Any) -> bool:
    """Returns whether a column holds texts, numbers or booleans, in any encoding."""
    types = importlib.import_module("pyarrow.types")
    kind = getattr(kind, "storage_type", kind)
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, getattr(types, "is_string_view", types.is_string))
    return any(is_one(kind) for is_one in (*texts, types.is_integer, types.is_floating, types.is_boolean))


def _row_groups(path: Path, file: Any, columns: tuple[str, ...]) -> Iterator[RowGroup]:
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    is_null = importlib.import_module("pyarrow.types").is_null
    named = dict.fromkeys(field.name for field in file.schema_arrow if not is_null(field.type))
    others = [name for name in named if name not in columns]
    firsts = accumulate((group.num_rows for group in groups), initial=0)
    for number, (group, first) in enumerate(zip(groups, firsts, strict=False)):
        filled = tuple((name, rows) for name in others if (rows := _filled(group, name)))
        yield RowGroup(str(path), number, first, group.num_rows, columns, filled)


def _filled(group: Any, name: str) -> int:
    """Returns the number of rows in which a column is filled: 0 where the file's statistics show it, else all rows."""
    leaves = [group.column(number) for number in range(group.num_columns)]
    own = [leaf for leaf in leaves if leaf.path_in_schema == name or leaf.path_in_schema.startswith(f"{name}.")]
    nulls = [leaf.statistics.null_count if leaf.statistics else None for leaf in own]
    if nulls and all(null is not None and null >= leaf.num_values for null, leaf in zip(nulls, own, strict=True)):
        return 0
    return int(group.num_rows)


def _open(path: Path) -> Any:
    """Opens a file as a pyarrow.parquet.ParquetFile; DataError where it cannot be read."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError("source 'parquet' needs the package pyarrow, which is not installed") from None
    try:
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except _unreadable() as error:
        raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}") from None


def _check(path: Path) -> None:
    _open(path).close()


def _unreadable() -> tuple[type[Exception], ...]:
    """Returns the errors that pyarrow raises for a broken file."""
    return OSError, importlib.import_module("pyarrow").ArrowException


def _values(batch: Any, number: int, columns: Sequence[str]) -> dict[str, Any] | Refusal:
    try:
        return {name: batch.column(name)[number].as_py() for name in columns}
    except (ValueError, OverflowError) as error:  # invalid UTF-8 in a column of text
        return Refusal("bad row", first_line(error))


def _is_null(image: Any) -> bool:
    """Returns whether there is no image; some writers use a struct of nulls instead of null."""
    if isinstance(image, dict):
        return all(_is_null(value) or value == "" for value in image.values())
    return image is None


def _images(value: Any) -> tuple[bytes, ...]:
    images: list[bytes] = []
    entries = value if isinstance(value, list) else [value]
    if all(map(_is_null, entries)):
        return ()
    for image in entries:
        content = image.get("bytes") if isinstance(image, dict) else image
        if content is None:
            raise Refused("missing image", "the column has a path without its bytes")
        if not isinstance(content, bytes):
            raise Refused("bad image", f"expected bytes, found {type(content).__name__}")
        images.append(content)
    check_size(images)
    return tuple(images)
