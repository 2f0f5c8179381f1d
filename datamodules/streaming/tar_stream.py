"""Reads the members of a tar once from front to back, and stops at damage."""

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from datamodules.images.decoding import EXTENSIONS
from datamodules.images.limits import MAX_BYTES
from datamodules.storage.tar_grouping import MAX_TEXT_BYTES, TEXTS, readable
from datamodules.storage.tar_headers import HEADER, MAX_HEADERS, Damaged
from fvl_lightning.core.errors import DataError, first_line

_WANTED = re.compile(
    rf"(?:.*/)?[^./]+\.(?:({'|'.join(TEXTS)})|(?:\d{{1,6}}\.)?(?:{'|'.join(EXTENSIONS)}))", re.IGNORECASE | re.DOTALL
)
"""Names of members that training reads; the key ends at the first dot, as webdataset has it."""

_BLOCK = 2**20


def stream_members(file: BinaryIO, place: str) -> Iterator[tuple[str, bytes | None]]:
    """Yields name and content of the members that training reads; None for content that is larger than allowed.

    No other member's content is held in memory, and none is unpacked: a compressed tar is refused.

    Args:
        file: an uncompressed tar, opened for reading; it is never sought in.
        place: its path or URL, for messages.

    Raises:
        Damaged: "empty file", "not a tar", "cut short" where the file ends before an end mark, or "damaged".
        DataError: the file cannot be read.
    """
    forward = _ForwardFile(file, place)
    try:
        # Otherwise tarfile would stop at the first end mark: joined tars (`cat a.tar b.tar`) have several.
        archive = tarfile.TarFile(
            fileobj=forward,  # type: ignore[arg-type]
            tarinfo=_StrictHeader,
            ignore_zeros=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (member := forward.next_of(archive)) is not None:
            if member.size < 0:
                raise Damaged("damaged", forward.tell())
            match = _WANTED.fullmatch(member.name)
            if match is not None and member.isreg() and not member.issparse():
                limit = MAX_TEXT_BYTES if match[1] else MAX_BYTES
                content = forward.content(member.offset_data, member.size) if member.size <= limit else None
                yield readable(member.name.encode("utf-8", errors="surrogateescape")), content
            # Otherwise tarfile keeps every header in memory.
            archive.members.clear()  # type: ignore[attr-defined]
    except (Damaged, DataError, GeneratorExit):
        raise
    except Exception:  # tarfile raises various errors on forged headers (ValueError, RecursionError ...)
        raise Damaged("damaged", forward.tell()) from None


class _StrictHeader(tarfile.TarInfo):
    """A member's header; tarfile itself takes a broken or missing one for the end of the tar."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictHeader":
        """Reads the next header; raises Damaged if it is missing and no end mark precedes."""
        forward: Any = archive.fileobj
        try:
            header = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            forward.at_end_mark = True
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if forward.at_end_mark:
                raise
            raise Damaged("cut short" if forward.tell() else "empty file", forward.tell()) from None
        except tarfile.HeaderError:
            place = forward.tell() - HEADER
            raise Damaged("damaged" if place > 0 else "not a tar", max(place, 0)) from None
        forward.at_end_mark = False
        return header


class _ForwardFile:
    """A file that is read forward only, like a connection, with a limit on the bytes of a header."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file, self._name, self._offset = file, place, 0
        self.at_end_mark = False
        self._room = MAX_HEADERS

    def next_of(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        """Returns the next member of `archive`, which reads this file; its headers may have MAX_HEADERS bytes."""
        self._room = MAX_HEADERS
        return archive.next()

    def tell(self) -> int:
        return self._offset

    def read(self, size: int) -> bytes:
        """Returns `size` bytes of headers, fewer at the end of the file."""
        if not 0 <= size <= self._room:
            raise Damaged("damaged", self._offset, f"{size} bytes of header")
        self._room -= size
        return self._read(size)

    def seek(self, offset: int) -> None:
        """Reads forward to `offset`; raises Damaged if it is already passed or beyond the end."""
        if offset < self._offset:
            raise Damaged("damaged", self._offset)
        while self._offset < offset:
            if not self._read(min(_BLOCK, offset - self._offset)):
                raise Damaged("cut short", self._offset)

    def content(self, offset: int, size: int) -> bytes:
        """Returns a member's content; raises Damaged if the file ends within it."""
        self.seek(offset)
        content = self._read(size)
        if len(content) < size:
            raise Damaged("cut short", self._offset)
        return content

    def _read(self, size: int) -> bytes:
        blocks, left = [], size
        try:
            while left and (block := self._file.read(left)):
                blocks.append(block)
                left -= len(block)
        except Exception as error:  # the libraries' errors have no common base class
            raise DataError(f"shard {self._name} cannot be read: {first_line(error)}") from None
        self._offset += size - left
        return b"".join(blocks)
