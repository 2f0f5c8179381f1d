"""Captioned images in tars, as img2dataset and other WebDataset writers produce them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.sources.base import Ignored, Inputs, Refusal, Row, Source
from datamodules.sources.image_files import MAX_IMAGE_BYTES
from datamodules.sources.json_rows import parse_json
from datamodules.sources.records import caption, metadata
from datamodules.sources.refusals import Refused, attempt
from datamodules.sources.row_files import check_file, find_files, open_file, sort_out
from datamodules.storage.tar_grouping import TEXTS, RefusedEntry, TarSample, read_headers, readable
from datamodules.storage.tar_headers import why_not_a_tar
from fvl_lightning.core.config.field_types import PathsText
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.registry import register


@register("source", "img2dataset")
class Img2datasetSource(Source):
    """Samples of an image (<key>.jpg, several as <key>.0.jpg, <key>.1.jpg ...) with <key>.json or <key>.txt.

    Tars are read as by `fvl shards index`. Links, devices and names that lead elsewhere are refused, members with other
    suffixes are ignored; both are counted.
    """

    @dataclass
    class Config:
        """Files and caption field."""

        file: PathsText
        """The .tar files: a path, a glob such as downloads/*.tar, or a list of them; not compressed."""
        caption_field: str | None = None
        """Field of the JSON with the caption; null for `caption`, or the .txt member where there is none."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[str | Refusal]:
        """Returns the tars; each is one chunk, since it is read from front to back anyway."""
        tars = sort_out(find_files(self.config.file, (".tar",)), _check_tar)
        return iter([found if isinstance(found, Refusal) else str(found) for found in tars])

    def inputs(self) -> Inputs:
        """Returns the files, which hold the images too."""
        return Inputs(tuple(find_files(self.config.file, (".tar",))))

    def rows(self, chunk: str) -> Iterator[Row | Refusal | Ignored]:
        """Yields the samples and refused members of a tar, in order, then the ignored members."""
        name = Path(chunk).name
        with open_file(chunk) as tar:
            try:
                headers = read_headers(tar)
            except OSError as error:
                yield Refusal("unreadable file", f"{error.strerror}", name)
                return
            entries: list[TarSample | RefusedEntry] = [*headers.samples, *headers.refused]
            for entry in sorted(entries, key=lambda entry: entry.place):
                if isinstance(entry, TarSample):
                    yield attempt(partial(self._row, tar), entry, f"{name}, sample '{readable(entry.key)}'")
                else:
                    where = f"{name}, member '{readable(entry.name)}'" if entry.name else name
                    yield Refusal(entry.reason, entry.detail or readable(entry.name), where)
        yield from (Ignored(kind, count) for kind, count in headers.ignored.items())

    def _row(self, tar: BinaryIO, sample: TarSample) -> Row:
        total = sum(size for suffix, _, size in sample.members if suffix not in TEXTS)
        if total > MAX_IMAGE_BYTES:
            raise Refused("image too large", f"{total} bytes, at most {MAX_IMAGE_BYTES} are read")
        contents = {suffix: _content(tar, offset, size) for suffix, offset, size in sample.members}
        fields = _fields(readable(sample.key), contents.get("json"))
        name = self.config.caption_field or "caption"
        text = fields.get(name)
        txt_member = contents.get("txt", b"").decode("utf-8-sig", errors="surrogateescape").strip()
        if text is None and self.config.caption_field is None and "txt" in contents:
            text = txt_member
        images = tuple(content for suffix, content in contents.items() if suffix not in TEXTS)
        if not images or len(images) == len(contents):
            names = ", ".join(f"{readable(sample.key)}.{suffix}" for suffix in contents)
            reason = "no caption" if images else "missing image"
            raise Refused(reason, f"only {names}; the members of a sample have the same name up to their suffix")
        record, unused = metadata(fields, used=(name,))
        if txt_member and txt_member != text:
            unused += ("txt",)
        return Row({**record, "caption": caption(text)}, images, unused=unused)


def _content(tar: BinaryIO, offset: int, size: int) -> bytes:
    try:
        tar.seek(offset)
        return tar.read(size)
    except OSError as error:
        raise Refused("unreadable file", f"{error.strerror}") from None


def _fields(key: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        fields = parse_json(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Refused("bad JSON", f"{key}.json: {error}") from None
    if not isinstance(fields, dict):
        raise Refused("bad JSON", f"{key}.json: expected an object, found {type(fields).__name__}")
    return fields


def _check_tar(path: Path) -> None:
    with open_file(path) as file:
        reason = why_not_a_tar(file)
    if reason:
        raise DataError(f"{path} cannot be read as an uncompressed tar: {reason}")
