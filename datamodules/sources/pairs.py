"""Images with a caption each: JSON Lines, a JSON array, CSV or TSV, and a folder of images."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.sources.base import Refusal, Row, Source
from datamodules.sources.files import (
    MAX_ROW_BYTES,
    ROWS_PER_CHUNK,
    check_file,
    find_files,
    find_folders,
    groups,
    open_file,
    read_images,
    sort_out,
)
from datamodules.sources.json_rows import JsonChunk, check_json, json_chunks, json_rows
from datamodules.sources.llava_json import image_names
from datamodules.sources.records import caption, scalars
from datamodules.sources.refusals import Refused, attempt
from fvl_lightning.core.errors import DataError, nearest
from fvl_lightning.core.registry import register

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", ".json", *_DELIMITERS)


@dataclass(frozen=True)
class TableChunk:
    """Consecutive rows of a CSV or TSV file, already taken apart, since only the one before says where a row begins.

    Each is behind where it is.
    """

    rows: tuple[tuple[str, dict[str, str] | Refusal], ...]


@register("source", "pairs")
class PairsSource(Source):
    """One row per caption, with the path of its image (or a list of paths); other columns are kept as metadata."""

    @dataclass
    class Config:
        """Where the captions and their images are."""

        file: Any
        """The .jsonl, .json, .csv or .tsv file: a path, a glob, or a list of them. Tables begin with their column
        names."""
        images: str
        """Folder the rows' image paths start from. Nothing outside is read, but for folders linked directly into it
        and those of `links`."""
        links: list[str] = field(default_factory=list)
        """Folders elsewhere into which links in `images` may lead, such as ~/.cache/huggingface/hub for a snapshot of
        the hub."""
        image: str = "image"
        """Name of the column with the image's path."""
        caption: str = "caption"
        """Name of the column with the caption."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[JsonChunk | TableChunk | Refusal]:
        """Groups of rows: spans of bytes for JSON, text for tables."""
        find_folders(self.config.images, self.config.links)
        for found in sort_out(find_files(self.config.file, _SUFFIXES), _check):
            if isinstance(found, Refusal):
                yield found
            elif _is_table(found):
                yield from map(TableChunk, groups(self._table(found), ROWS_PER_CHUNK))
            else:
                yield from json_chunks(found)

    def rows(self, chunk: JsonChunk | TableChunk) -> Iterator[Row | Refusal]:
        """Captions with the images they name."""
        for where, row in json_rows(chunk) if isinstance(chunk, JsonChunk) else chunk.rows:
            yield attempt(self._row, row, where)

    def _row(self, row: dict[str, Any]) -> Row:
        config = self.config
        record = scalars(row, without=(config.image, config.caption, "messages"))
        record["caption"] = caption(row.get(config.caption))
        names = image_names(row.get(config.image))
        if not names:
            raise Refused("missing image", f"column '{config.image}' is empty")
        return Row(record, read_images(Path(config.images), names, config.links))

    def _table(self, path: Path) -> Iterator[tuple[str, dict[str, str] | Refusal]]:
        with open_file(path) as file:
            table, columns = _opened(path, file)
            for column in (self.config.image, self.config.caption):
                if columns and column not in columns:
                    close = nearest(column, columns)
                    hint = f"; did you mean '{close}'?" if close else ""
                    raise DataError(f"{path}: no column '{column}', there are {', '.join(columns)}{hint}")
            line = table.line_num + 1
            while (cells := _cells(table)) is not None:
                where, line = f"{path.name}, line {line}", table.line_num + 1
                if isinstance(cells, Refusal):
                    yield where, cells
                elif len(cells) == len(columns):
                    yield where, dict(zip(columns, cells, strict=True))
                elif cells:
                    yield where, Refusal("bad row", f"{len(cells)} cells for {len(columns)} columns")


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in _DELIMITERS


def _check(path: Path) -> None:
    """DataError where a file can't be read as what its name says."""
    if not _is_table(path):
        check_json(path)
        return
    with open_file(path) as file:
        _opened(path, file)


def _opened(path: Path, file: Any) -> tuple[Any, list[str]]:
    """The reader of a table, behind its first line, and the column names of that; DataError where it has none."""
    table = csv.reader(_lines(file), delimiter=_DELIMITERS[path.suffix.lower()])
    columns = _cells(table) or []
    if isinstance(columns, Refusal):
        raise DataError(f"{path}: its first line can't be read as column names ({columns.detail})")
    return table, columns


def _cells(table: Any) -> list[str] | Refusal | None:
    """The next row of a csv reader, or why it can't be had; None behind the last."""
    try:
        return next(table, None)
    except csv.Error as error:
        return Refusal("bad row", str(error))


def _lines(file: Any) -> Iterator[str]:
    """The lines as text; bytes that are no UTF-8 become lone surrogates, so that only their own row is lost."""
    encoding = "utf-8-sig"
    while line := file.readline(MAX_ROW_BYTES):
        yield line.decode(encoding, errors="surrogateescape")
        encoding = "utf-8"
