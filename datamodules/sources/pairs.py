"""Captioned images: JSON Lines, a JSON array, CSV or TSV, and a folder of images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.sources.base import Inputs, Refusal, Row, Source
from datamodules.sources.image_files import find_folders, read_images
from datamodules.sources.json_rows import JsonChunk, check_json, json_chunks, json_rows
from datamodules.sources.llava_json import image_names
from datamodules.sources.records import caption, metadata
from datamodules.sources.refusals import Refused, attempt
from datamodules.sources.row_files import ROWS_PER_CHUNK, check_file, find_files, groups, sort_out
from datamodules.sources.tables import DELIMITERS, table_columns, table_rows
from datamodules.sources.unusable_media import check_media
from fvl_lightning.core.config.field_types import PathsText, PathText
from fvl_lightning.core.errors import DataError, nearest
from fvl_lightning.core.registry import register

_SUFFIXES = (".jsonl", ".json", *DELIMITERS)


@dataclass(frozen=True)
class TableChunk:
    """Consecutive rows (place, cells) of a CSV or TSV file, already parsed, since only parsing finds their ends."""

    rows: tuple[tuple[str, dict[str, str] | Refusal], ...]


@register("source", "pairs")
class PairsSource(Source):
    """Rows with a caption and the path of an image (or a list of paths); other columns are kept as metadata."""

    @dataclass
    class Config:
        """Files of captions, and the folder of their images."""

        file: PathsText
        """The .jsonl, .json, .csv or .tsv file: a path, a glob, or a list of them. Tables begin with their column
        names."""
        images: PathText
        """Folder that the rows' image paths are relative to. Nothing outside is read, except in the folders of
        `links`."""
        links: list[PathText] = field(default_factory=list)
        """Other folders that links in `images` may lead into, such as /data/coco where images/coco is a link to it, or
        ~/.cache/huggingface/hub for a hub snapshot."""
        image: str = "image"
        """Column with the image's path."""
        caption: str = "caption"
        """Column with the caption."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[JsonChunk | TableChunk | Refusal]:
        """Yields groups of rows: spans of bytes for JSON, parsed rows for tables."""
        find_folders(self.config.images, self.config.links)
        for found in sort_out(find_files(self.config.file, _SUFFIXES), self._check):
            if isinstance(found, Refusal):
                yield found
            elif _is_table(found):
                yield from map(TableChunk, groups(table_rows(found, self.config.image), ROWS_PER_CHUNK))
            else:
                yield from json_chunks(found)

    def inputs(self) -> Inputs:
        """Returns the files of rows and the folder of their images."""
        config = self.config
        find_folders(config.images, config.links)
        files = find_files(config.file, _SUFFIXES)
        return Inputs(tuple(files), Path(config.images), tuple(config.links))

    def rows(self, chunk: JsonChunk | TableChunk) -> Iterator[Row | Refusal]:
        """Yields captions with the images they name."""
        for where, row in json_rows(chunk) if isinstance(chunk, JsonChunk) else chunk.rows:
            yield attempt(self._row, row, where)

    def _row(self, row: dict[str, Any]) -> Row:
        config = self.config
        record, unused = metadata(row, used=(config.image, config.caption))
        record["caption"] = caption(row.get(config.caption))
        names = image_names(row.get(config.image))
        if not names:
            raise Refused("missing image", f"column '{config.image}' is empty")
        check_media(row, has_images=True)
        return Row(record, read_images(Path(config.images), names, config.links), unused=unused)

    def _check(self, path: Path) -> None:
        """Raises DataError where a file does not have the format of its suffix, or lacks a column."""
        if not _is_table(path):
            check_json(path, (self.config.caption, self.config.image))
            return
        columns = table_columns(path)
        for column in (self.config.image, self.config.caption) if columns else ():
            if column not in columns:
                close = nearest(column, columns)
                hint = f"; did you mean '{close}'?" if close else ""
                raise DataError(f"{path}: no column '{column}', there are {', '.join(columns)}{hint}")
            if f"{column}.1" in columns:
                raise DataError(f"{path}: two columns are named '{column}'")


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in DELIMITERS
