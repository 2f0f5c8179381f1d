"""LLaVA's format: conversations in a JSON array or JSON Lines, and a folder of images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.sources.base import Inputs, Refusal, Row, Source
from datamodules.sources.image_files import find_folders, read_images
from datamodules.sources.json_rows import JsonChunk, check_json, json_chunks, json_rows
from datamodules.sources.records import answer_kinds, first_answer, from_conversations, metadata, turn_fields, turns_of
from datamodules.sources.refusals import Refused, attempt
from datamodules.sources.row_files import check_file, find_files, sort_out
from datamodules.sources.unusable_media import check_media
from fvl_lightning.core.config.field_types import PathsText, PathText
from fvl_lightning.core.registry import register

_IMAGE_FIELDS = ("image", "images")
_NO_IMAGE = ("", "None", "none", "nan")
"""Values that datasets made from tables, such as Cambrian's, have for rows without an image."""


@register("source", "llava_json")
class LlavaJsonSource(Source):
    """Rows of {"image": path, list of paths or absent, "conversations": [{"from": ..., "value": ...}], metadata}.

    "<image>" in a value becomes an image part in its place. Text, numbers and booleans are kept as metadata, and so is
    `kinds`, one name per answer, which groups scores. A row without images that names media in another field is
    refused, and so is one with video or audio.
    """

    @dataclass
    class Config:
        """Files of conversations, and the folder of their images."""

        file: PathsText
        """The .json or .jsonl file: a path, a glob such as parts/*.jsonl, or a list of them."""
        images: PathText
        """Folder that the rows' image paths are relative to. Nothing outside is read, except in the folders of
        `links`."""
        links: list[PathText] = field(default_factory=list)
        """Other folders that links in `images` may lead into, such as /data/coco where images/coco is a link to it, or
        ~/.cache/huggingface/hub for a hub snapshot."""
        image: str | None = None
        """Field with the path of an image or a list of them; null for `image`, or `images` where that is empty."""
        answer_as_caption: bool = False
        """Also keep the first answer as `caption`, for datasets whose questions only ask for a description."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[JsonChunk | Refusal]:
        """Yields groups of rows, as spans of bytes."""
        find_folders(self.config.images, self.config.links)
        for found in sort_out(find_files(self.config.file, (".json", ".jsonl")), _check):
            if isinstance(found, Refusal):
                yield found
            else:
                yield from json_chunks(found)

    def inputs(self) -> Inputs:
        """Returns the files of rows and the folder of their images."""
        config = self.config
        find_folders(config.images, config.links)
        files = find_files(config.file, (".json", ".jsonl"))
        return Inputs(tuple(files), Path(config.images), tuple(config.links))

    def rows(self, chunk: JsonChunk) -> Iterator[Row | Refusal]:
        """Yields conversations with the images they name."""
        for where, row in json_rows(chunk):
            yield attempt(self._row, row, where)

    def _row(self, row: dict[str, Any]) -> Row:
        fields = _IMAGE_FIELDS if self.config.image is None else (self.config.image,)
        record, unused = metadata(row, used=(*fields, "conversations", "kinds"))
        turns = row.get("conversations")
        record["messages"] = from_conversations(turns)
        if row.get("kinds") is not None:
            record["kinds"] = answer_kinds(row["kinds"], record["messages"])
        if self.config.answer_as_caption:
            record["caption"] = first_answer(record["messages"])
        names = _only([image_names(row.get(field)) for field in fields])
        check_media(row, bool(names), used=(*fields, "conversations"))
        for turn in turns_of(turns):
            check_media(turn, bool(names), used=("value",))
        unused += turn_fields("conversations", turns, used=("from", "value"))
        return Row(record, read_images(Path(self.config.images), names, self.config.links), unused=unused)


def _check(path: Path) -> None:
    check_json(path, ("conversations",))


def _only(found: list[list[str]]) -> list[str]:
    """Returns the image paths of the only field that has some; Refused where two fields differ."""
    named = [names for names in found if names]
    if any(names != named[0] for names in named):
        raise Refused("bad image", f"both {' and '.join(map(repr, _IMAGE_FIELDS))} name images")
    return named[0] if named else []


def image_names(value: Any) -> list[str]:
    """Returns the image paths in the value of a row's `image` field."""
    if value is None or value in (*_NO_IMAGE, []) or (isinstance(value, float) and math.isnan(value)):
        return []
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise Refused("bad image", "expected a path or a list of paths")
    return names
