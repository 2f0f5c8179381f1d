"""Captioned images in tars, as img2dataset and other writers of WebDataset leave them."""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.sources.base import Refusal, Row, Source
from datamodules.sources.files import MAX_IMAGE_BYTES, MAX_ROW_BYTES, check_file, check_size, find_files, sort_out
from datamodules.sources.records import caption, scalars
from datamodules.sources.refusals import Refused, attempt
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.registry import register

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.((?:\d+\.)?(?:png|jpg|jpeg|webp)|json|txt)", re.IGNORECASE)
"""Key and suffix of the members that are read."""
_END_MARK = bytes(tarfile.BLOCKSIZE)


@dataclass
class _Sample:
    """The members of one key: their contents, or why one of them can't be had."""

    key: str
    contents: dict[str, bytes] = field(default_factory=dict)
    refusal: Refusal | None = None


@register("source", "img2dataset")
class Img2datasetSource(Source):
    """Samples of <key>.jpg, .png or .webp (several as <key>.0.jpg, <key>.1.jpg ...) with <key>.json or <key>.txt.

    Only plain files of these suffixes are read: links, devices and names that lead elsewhere are passed over.
    """

    @dataclass
    class Config:
        """Where the tars are and what is the caption."""

        file: Any
        """The .tar files: a path, a glob such as downloads/*.tar, or a list of them; not compressed."""
        caption_field: str | None = None
        """Field of the JSON that holds the caption; null for `caption`, or else the .txt member."""

        def __post_init__(self) -> None:
            check_file(self.file)

    def chunks(self) -> Iterator[str | Refusal]:
        """The tars: each is read from front to back in any case."""
        tars = sort_out(find_files(self.config.file, (".tar",)), _check_tar)
        return iter([found if isinstance(found, Refusal) else str(found) for found in tars])

    def rows(self, chunk: str) -> Iterator[Row | Refusal]:
        """The samples of a tar; of one that is cut short, those before the last, and a Refusal."""
        name = Path(chunk).name
        for sample in _samples(Path(chunk)):
            where = name if isinstance(sample, Refusal) else f"{name}, sample '{sample.key}'"
            yield attempt(self._row, sample, where)

    def _row(self, sample: _Sample) -> Row:
        if sample.refusal:
            raise Refused(sample.refusal.reason, sample.refusal.detail)
        fields = _fields(sample)
        name = self.config.caption_field or "caption"
        text = fields.get(name)
        if text is None and self.config.caption_field is None and "txt" in sample.contents:
            text = sample.contents["txt"].decode("utf-8", errors="surrogateescape").strip()
        record = {**scalars(fields, without=(name, "messages")), "caption": caption(text)}
        suffixes = sorted((name for name in sample.contents if name not in ("json", "txt")), key=_number)
        if not suffixes:
            raise Refused("missing image", sample.key)
        images = tuple(sample.contents[suffix] for suffix in suffixes)
        check_size(images)
        return Row(record, images)


def _fields(sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.contents:
        return {}
    try:
        fields = json.loads(sample.contents["json"].decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Refused("bad JSON", f"{sample.key}.json: {error}") from None
    if not isinstance(fields, dict):
        raise Refused("bad JSON", f"{sample.key}.json: expected an object, found {type(fields).__name__}")
    return fields


def _check_tar(path: Path) -> None:
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} can't be read as an uncompressed tar: {error}") from None


def _number(suffix: str) -> int:
    return int(suffix.split(".")[0]) if "." in suffix else -1


def _samples(path: Path) -> Iterator[_Sample | Refusal]:
    """Consecutive members of one key are one sample; what a cut leaves of the last one is not."""
    sample: _Sample | None = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in _members(archive):
                match = _MEMBER.fullmatch(member.name)
                if match is None or not _is_safe(member):
                    continue
                if sample is None or sample.key != match[1]:
                    if sample is not None:
                        yield sample
                    sample = _Sample(match[1])
                _add(sample, match[2].lower(), archive, member)
    # Damaged headers make tarfile raise more than its own errors.
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        lost = f"from sample '{sample.key}' on: " if sample is not None else ""
        yield Refusal("cut short", f"{lost}{error}")
    else:
        if sample is not None:
            yield sample


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order; raises ReadError where the tar ends before its end mark, or a header leads backwards."""
    last = -1
    while (member := archive.next()) is not None:
        if member.offset <= last or member.size < 0:
            raise tarfile.ReadError("a header gives an impossible size")
        last = member.offset
        yield member
        # Else tarfile keeps every header it has seen in memory.
        archive.members.clear()  # type: ignore[attr-defined]
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != _END_MARK:
        raise tarfile.ReadError("its end mark is missing")


def _is_safe(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and member.name[0] != "/" and ".." not in member.name.split("/")


def _add(sample: _Sample, suffix: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    is_text = suffix in ("json", "txt")
    allowed = MAX_ROW_BYTES if is_text else MAX_IMAGE_BYTES - sum(map(len, sample.contents.values()))
    if suffix in sample.contents:
        sample.refusal = Refusal("bad row", f"two members named {member.name}")
    elif member.size > allowed:
        reason = "row too large" if is_text else "image too large"
        sample.refusal = Refusal(reason, f"{member.name}: {member.size} bytes, at most {allowed} are read")
    else:
        content = archive.extractfile(member)
        assert content is not None, "a regular file has content"
        sample.contents[suffix] = content.read()
