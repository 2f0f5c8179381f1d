"""Image data sets in Parquet, as the Hugging Face hub keeps them: the images lie in a column of the rows."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from datamodules.sources.base import Refusal, Row, Source
from datamodules.sources.files import check_file, check_size, find_files, sort_out
from datamodules.sources.records import caption, from_conversations, from_messages, from_texts, scalars
from datamodules.sources.refusals import Refused, attempt
from fvl_lightning.core.errors import DataError, first_line, nearest
from fvl_lightning.core.registry import register

_ROWS_AT_A_TIME = 16
_BUFFER = 2**20
"""Bytes of a column that are read ahead; without a bound a whole row group is in memory."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file, the number of its first row in the file, and the columns to read of it."""

    path: str
    number: int
    first: int
    columns: tuple[str, ...]


@register("source", "parquet")
class ParquetSource(Source):
    """Rows with their images in a column, as {"bytes": ..., "path": ...} or plain bytes, one or a list of them.

    Columns of text, numbers and booleans are kept as metadata. A path without bytes is never followed.
    """

    @dataclass
    class Config:
        """Where the files are and what their columns hold."""

        file: Any
        """The .parquet files: a path, a glob such as data/train-*.parquet, or a list of them."""
        layout: Literal["messages", "conversations", "texts", "caption"]
        """messages: role and content, a text or parts. conversations: LLaVA's from and value, with <image> in the
        text. texts: the Cauldron's user and assistant, images before the first question. caption: a text."""
        images: str | None = "images"
        """Column with the images; null where there are none."""
        text: str | None = None
        """Column with the conversation or caption; null for one named like the layout."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[RowGroup | Refusal]:
        """The row groups of every file."""
        chunks: list[RowGroup | Refusal] = []
        for found in sort_out(find_files(self.config.file, (".parquet",)), _check):
            if isinstance(found, Refusal):
                chunks.append(found)
                continue
            with _open(found) as file:
                columns = self._columns(found, file.schema_arrow)
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            firsts = accumulate(sizes[:-1], initial=0) if sizes else ()
            chunks += (RowGroup(str(found), number, first, columns) for number, first in enumerate(firsts))
        return iter(chunks)

    def rows(self, chunk: RowGroup) -> Iterator[Row | Refusal]:
        """The rows of a group, a few of them in memory at a time; what can't be read of it is one Refusal."""
        with _open(Path(chunk.path)) as file:
            name, row = Path(chunk.path).name, chunk.first
            batches = file.iter_batches(_ROWS_AT_A_TIME, row_groups=[chunk.number], columns=list(chunk.columns))
            try:
                for batch in batches:
                    for number in range(batch.num_rows):
                        yield attempt(self._row, _values(batch, number), f"{name}, row {row}")
                        row += 1
            except _unreadable() as error:
                what = f"from here to the end of row group {chunk.number}: {first_line(error)}"
                yield Refusal("unreadable rows", what, f"{name}, row {row}")

    def _row(self, row: dict[str, Any]) -> Row:
        config = self.config
        column = config.text or config.layout
        said = row[column]
        images = _images(row[config.images]) if config.images else ()
        record = scalars(row, without=(column, config.images or "", "messages"))
        if config.layout == "caption":
            record["caption"] = caption(said)
        elif config.layout == "conversations":
            record["messages"] = from_conversations(said)
        elif config.layout == "messages":
            record["messages"] = from_messages(said)
        else:
            record["messages"] = from_texts(said, len(images))
            record |= scalars({"source": said[0].get("source")}, without=())
        return Row(record, images)

    def _columns(self, path: Path, schema: Any) -> tuple[str, ...]:
        """The columns to read: the two that are named, and all that may be metadata."""
        named = [name for name in (self.config.images, self.config.text or self.config.layout) if name]
        for name in named:
            if name not in schema.names:
                close = nearest(name, schema.names)
                hint = f"; did you mean '{close}'?" if close else ""
                raise DataError(f"{path}: no column '{name}', there are {', '.join(schema.names)}{hint}")
        types = importlib.import_module("pyarrow.types")
        plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
        metadata = (field.name for field in schema if any(is_one(field.type) for is_one in plain))
        return tuple(dict.fromkeys([*named, *metadata]))


def _open(path: Path) -> Any:
    """The file as a pyarrow.parquet.ParquetFile."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError("source 'parquet' needs the package pyarrow, which is not installed") from None
    try:
        return parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except _unreadable() as error:
        raise DataError(f"{path} can't be read as Parquet: {first_line(error)}") from None


def _check(path: Path) -> None:
    _open(path).close()


def _unreadable() -> tuple[type[Exception], ...]:
    """What pyarrow raises for a broken file."""
    return OSError, importlib.import_module("pyarrow").ArrowException


def _values(batch: Any, number: int) -> dict[str, Any] | Refusal:
    try:
        return {name: batch.column(name)[number].as_py() for name in batch.schema.names}
    except ValueError as error:  # bytes that are no UTF-8 in a column of text
        return Refusal("bad row", first_line(error))


def _is_null(image: Any) -> bool:
    """Whether there is no image: some writers spell that as a struct without bytes and path, not as null."""
    return image is None or (isinstance(image, dict) and image.get("bytes") is None and not image.get("path"))


def _images(value: Any) -> tuple[bytes, ...]:
    images: list[bytes] = []
    found = value if isinstance(value, list) else [value]
    if all(map(_is_null, found)):
        return ()
    for image in found:
        content = image.get("bytes") if isinstance(image, dict) else image
        if content is None:
            raise Refused("missing image", "the column holds no bytes of it")
        if not isinstance(content, bytes):
            raise Refused("bad image", f"expected bytes, found {type(content).__name__}")
        images.append(content)
    check_size(images)
    return tuple(images)
