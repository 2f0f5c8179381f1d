"""Image datasets in Parquet, in files or straight from the Hugging Face hub, with the images in a column."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from datamodules.hub.address import HubAddress, is_hub
from datamodules.hub.files import commit_of, parquet_files
from datamodules.sources.base import Ignored, Inputs, Refusal, Row, Source
from datamodules.sources.image_files import check_size
from datamodules.sources.parquet_files import (
    Columns,
    OpenParquet,
    Place,
    RowGroup,
    UnreadableFileError,
    all_values,
    is_plain,
    row_groups,
    unreadable,
)
from datamodules.sources.records import (
    caption,
    first_answer,
    from_conversations,
    from_messages,
    from_texts,
    metadata,
    part_fields,
    turn_fields,
    turns_of,
)
from datamodules.sources.refusals import Refused, attempt
from datamodules.sources.row_files import check_file, find_files, sort_out
from datamodules.sources.unusable_media import FIELDS as MEDIA_FIELDS
from datamodules.sources.unusable_media import check_media
from fvl_lightning.core.config.field_types import PathsText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import DataError, first_line, nearest
from fvl_lightning.core.registry import register

_ROWS_AT_A_TIME = 16
_TURNS = {
    "messages": ("role", "content"),
    "conversations": ("from", "value"),
    "texts": ("user", "assistant", "source"),
    "caption": (),
}
"""The fields of a turn that are read, by layout."""
_SOURCE = "source"
"""The field of a turn in the layout texts that names where it comes from."""
_BEYOND = "rows beyond source.max_rows"


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
        """The .parquet files: a path, a glob such as data/train-*.parquet, a dataset of the hub such as
        hub:HuggingFaceM4/the_cauldron:chartqa, or a list of them. hub:owner/name@revision:config/split is streamed
        without a copy on the disk; without a revision it is the newest commit, which the manifest names."""
        layout: Literal["messages", "conversations", "texts", "caption"] | None = None
        """messages: role and content, a text or parts. conversations: LLaVA's from and value, with <image> in the
        text. texts: the Cauldron's user and assistant, images at <image> or else before the first question. caption:
        a text. Conversations may be JSON in a text, or one mapping of lists. null for the one whose name a column has;
        the column of images may then be named image too."""
        images: str | None = "images"
        """Column with the images; null where there are none."""
        text: str | None = None
        """Column with the conversation or caption; null for the one with the layout's name."""
        answer_as_caption: bool = False
        """Also keep the first answer as `caption`, for datasets whose questions only ask for a description."""
        kinds: str | None = None
        """Column with the kind of a row's questions, by which scores are grouped, or the field `source` of the turns in
        the layout texts; rows with exactly one image get it. null for none."""
        max_rows: int | None = number(None, at_least=1)
        """Largest number of rows that are read of each entry of `file`, from its beginning; null for all."""

        def __post_init__(self) -> None:
            check_file(self.file)
            for entry in self.file if isinstance(self.file, list) else [self.file]:
                if is_hub(entry):
                    HubAddress.parse(entry)
            if self.text is not None and self.layout is None:
                raise ValueError(f"layout: name that of the column '{self.text}': {', '.join(_TURNS)}")

    @property
    def remote(self) -> bool:
        """True if an entry of `file` is a dataset of the hub, which is read over the network."""
        return any(map(is_hub, self._entries))

    def chunks(self) -> Iterator[RowGroup | Refusal | Ignored]:
        """Returns the row groups of every file; those of the hub are found while they are read."""
        found = self._chunks()
        return found if self.remote else iter(list(found))

    def inputs(self) -> Inputs:
        """Returns the files, which hold the images too, and the commits of datasets on the hub."""
        addresses = {address.repository: address for address in map(HubAddress.parse, filter(is_hub, self._entries))}
        commits = {name: commit_of(address) for name, address in addresses.items()}
        return Inputs(tuple(self._local), commits=commits)

    def pinned(self, commits: Mapping[str, str]) -> Self:
        """Returns the source with every dataset of the hub at the commit that `commits` has for its address."""
        entries = [
            str(address.at(commits[address.repository])) if address and address.repository in commits else entry
            for entry in self._entries
            for address in [HubAddress.parse(entry) if is_hub(entry) else None]
        ]
        return type(self)(replace(self.config, file=entries))

    def rows(self, chunk: RowGroup) -> Iterator[Row | Refusal | Ignored]:
        """Yields the rows of a group, with a few in memory at a time; all unreadable rows are one Refusal.

        Raises:
            DataError: the hub cannot be reached, so that no row after it is refused.
        """
        wanted = chunk.rows - chunk.beyond
        if wanted:
            yield from self._read(chunk, wanted)
            yield from (Ignored(f"columns '{column}'", min(count, wanted)) for column, count in chunk.others)
        if chunk.beyond:
            yield Ignored(_BEYOND, chunk.beyond)

    def _read(self, chunk: RowGroup, wanted: int) -> Iterator[Row | Refusal]:
        """Yields the first rows of a group."""
        name, read, reason = chunk.place.name, 0, "the group ends before them"
        with OpenParquet(chunk.place) as opened:
            columns = list(chunk.columns.read)
            batches = opened.file.iter_batches(_ROWS_AT_A_TIME, row_groups=[chunk.number], columns=columns)
            try:
                for values in islice(all_values(batches, columns), wanted):
                    yield attempt(partial(self._row, chunk.columns), values, f"{name}, row {chunk.first + read}")
                    read += 1
            except unreadable() as error:
                opened.raise_network_error()
                reason = first_line(error)
        lost = wanted - read
        if lost:
            detail = f"{lost} rows from here to the end of row group {chunk.number}: {reason}"
            yield Refusal("unreadable rows", detail, f"{name}, row {chunk.first + read}", rows=lost)

    @property
    def _entries(self) -> list[str]:
        return self.config.file if isinstance(self.config.file, list) else [self.config.file]

    @property
    def _local(self) -> list[Path]:
        """The files of this machine, in order."""
        return find_files([entry for entry in self._entries if not is_hub(entry)], (".parquet",))

    def _chunks(self) -> Iterator[RowGroup | Refusal | Ignored]:
        checked = iter(sort_out(self._local, _check))
        for entry in self._entries:
            if is_hub(entry):
                places: Iterable[Place | Refusal] = parquet_files(HubAddress.parse(entry))
            else:
                places = islice(checked, len(find_files(entry, (".parquet",))))
            yield from self._first_rows(places)

    def _first_rows(self, places: Iterable[Place | Refusal]) -> Iterator[RowGroup | Refusal | Ignored]:
        """Yields the row groups of some files up to max_rows; what is beyond is counted."""
        left, files_beyond = self.config.max_rows, 0
        for place in places:
            if isinstance(place, Refusal):
                yield place
            elif left == 0:
                files_beyond += 1
            else:
                for group in self._groups_of(place):
                    if left is None or isinstance(group, Refusal):
                        yield group
                    else:
                        beyond = max(0, group.rows - left)
                        left -= group.rows - beyond
                        yield replace(group, beyond=beyond)
        if files_beyond:
            yield Ignored("files beyond source.max_rows", files_beyond)

    def _groups_of(self, place: Place) -> Iterator[RowGroup | Refusal]:
        try:
            opened = OpenParquet(place)
        except UnreadableFileError as error:
            yield Refusal("unreadable file", str(error), place.name)
            return
        with opened:
            yield from row_groups(place, opened.file, self._columns(place, opened.file.schema_arrow))

    def _row(self, columns: Columns, row: dict[str, Any]) -> Row:
        value = row[columns.text]
        images = _images(row[columns.images]) if columns.images else ()
        used = (columns.text, columns.images or "")
        record, unused = metadata(row, used)
        # A recipe without a column of images states that rows have none, so images elsewhere are not refused.
        has_images = bool(images) or columns.images is None
        check_media(row, has_images, used)
        if columns.layout == "caption":
            return Row({**record, "caption": caption(value)}, images, unused=unused)
        fields = _TURNS[columns.layout]
        for turn in turns_of(value):
            check_media(turn, has_images, used=fields)
        if columns.layout == "conversations":
            record["messages"] = from_conversations(value)
        elif columns.layout == "messages":
            record["messages"] = from_messages(value)
        else:
            record["messages"] = from_texts(value, len(images))
            first = turns_of(value)[0].get(_SOURCE)
            record |= {_SOURCE: first} if isinstance(first, str) else {}
        if self.config.answer_as_caption:
            record["caption"] = first_answer(record["messages"])
        if (kind := record.get(self.config.kinds)) is not None and len(images) == 1:
            answers = sum(message["role"] == "assistant" for message in record["messages"])
            record["kinds"] = [str(kind)] * answers
        unused += turn_fields(columns.text, value, used=fields)
        if columns.layout == "messages":
            unused += part_fields(columns.text, value)
        return Row(record, images, unused=unused)

    def _columns(self, place: Place, schema: Any) -> Columns:
        """Returns the columns to read: those of the recipe, and all that may be metadata."""
        config, images = self.config, self.config.images
        layout = config.layout or _layout(place, schema.names)
        if config.layout is None and images == "images" and images not in schema.names:
            images = "image"
        text = config.text or layout
        of_turns = layout == "texts" and config.kinds == _SOURCE
        for name in (images, text, None if of_turns else config.kinds):
            if name is None:
                continue
            if schema.names.count(name) > 1:
                raise DataError(f"{place}: {schema.names.count(name)} columns are named '{name}'")
            if name not in schema.names:
                close = nearest(name, schema.names)
                hint = f"; did you mean '{close}'?" if close else ""
                raise DataError(f"{place}: no column '{name}', there are {', '.join(schema.names)}{hint}")
        metadata_of = (field.name for field in schema if is_plain(field.type) or field.name in MEDIA_FIELDS)
        named = [name for name in (images, text) if name]
        read = dict.fromkeys([*named, *(name for name in metadata_of if schema.names.count(name) == 1)])
        return Columns(layout, text, images, tuple(read))


def _check(path: Path) -> None:
    with OpenParquet(path):
        pass


def _layout(place: Place, names: Sequence[str]) -> str:
    """Returns the only layout whose name a column has."""
    found = [layout for layout in _TURNS if layout in names]
    if len(found) > 1:
        raise DataError(f"{place}: there are columns {' and '.join(found)}; choose one as source.layout")
    if not found:
        raise DataError(
            f"{place}: no column is named {', '.join(_TURNS)}; name source.layout, and the column in source.text "
            f"(there are {', '.join(names)})"
        )
    return found[0]


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
