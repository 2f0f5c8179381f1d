"""Reads the members of an untrusted tar one after the other, up to its end or its first damage."""

import io
import os
import tarfile
from collections.abc import Generator, Iterator
from typing import BinaryIO

HEADER = tarfile.BLOCKSIZE
"""Bytes of the header before each member's content."""

MAX_HEADERS = 2**22
"""Bytes that the headers of one member may have together: its own, and the extensions before it."""
_ZEROS_AT_ONCE = 2**20
_PACKERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Damaged(Exception):
    """The tar cannot be read from `place` on; `reason` is a short category to count by."""

    def __init__(self, reason: str, place: int, detail: str = "") -> None:
        super().__init__(reason, place, detail)
        self.reason, self.place, self.detail = reason, place, detail


def members_of(tar: BinaryIO) -> Iterator[tarfile.TarInfo | int]:
    """Yields every member of a tar in order, and the offset in bytes of each end mark that is not the last.

    Tars that were joined (`cat a.tar b.tar`) and lone blocks of zeros have such end marks; many readers silently stop
    at the first one. The last member may reach beyond the end of the file: Damaged is raised after it.

    Args:
        tar: an uncompressed tar, opened for reading; its own position does not matter.

    Raises:
        Damaged: "empty file", "not a tar", "cut short" where the file ends before an end mark, or "damaged".
        OSError: the file cannot be read.
    """
    size = os.fstat(tar.fileno()).st_size
    if size == 0:
        raise Damaged("empty file", 0)
    start = 0
    while True:
        end = yield from _members_from(tar, start, size)
        following = _behind_end_mark(tar, end, size)
        if following is None:
            return
        yield end
        start = following


def why_not_a_tar(tar: BinaryIO) -> str:
    """Returns why a file cannot be read as a tar; an empty text if its first member can be read."""
    try:
        next(members_of(tar), None)
    except Damaged as damage:
        return damage.detail or damage.reason
    return ""


def _members_from(tar: BinaryIO, start: int, size: int) -> Generator[tarfile.TarInfo, None, int]:
    """Yields the members from `start` up to the next end mark, and returns where that begins."""
    end = start
    try:
        with (
            _HeaderReader(io.FileIO(tar.fileno(), closefd=False)) as file,
            _opened(file, start) as archive,
        ):
            while (member := file.next_of(archive)) is not None:
                # A forged size can be negative, and the headers would be read again forever.
                if member.size < 0 or member.offset_data <= end:
                    raise tarfile.ReadError
                end = archive.offset
                yield member
                if end > size:
                    raise Damaged("cut short", member.offset)
                # Otherwise tarfile keeps every header in memory.
                archive.members.clear()  # type: ignore[attr-defined]
            return archive.offset
    except (OSError, Damaged):
        raise
    except Exception:  # the parser raises various errors on forged headers (ValueError, RecursionError ...)
        if end:
            raise Damaged("damaged", end) from None
        raise Damaged("not a tar", 0, _packed(os.pread(tar.fileno(), 8, 0))) from None


def _opened(file: "_HeaderReader", start: int) -> tarfile.TarFile:
    file.seek(start)
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")


class _HeaderReader(io.BufferedReader):
    """Limits the size of headers: the parser would read extensions of any claimed size and number into memory."""

    room = MAX_HEADERS

    def next_of(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        """Returns the next member of the archive that reads this file."""
        self.room = MAX_HEADERS
        return archive.next()

    def read(self, size: int | None = -1) -> bytes:
        """Reads as any file does; refuses sizes that no header needs."""
        if size is None or not 0 <= size <= self.room:
            raise tarfile.ReadError(f"{size} bytes of header")
        self.room -= size
        return super().read(size)


def _behind_end_mark(tar: BinaryIO, end: int, size: int) -> int | None:
    """Returns the offset of the first block that is not zeros; None if there is none.

    Raises:
        Damaged: there is no end mark at `end`, or no header after the zeros.
    """
    if size - end < HEADER:
        raise Damaged("cut short", end)
    place = end
    while block := os.pread(tar.fileno(), _ZEROS_AT_ONCE, place):
        if block.count(0) != len(block):
            first = place + len(block) - len(block.lstrip(b"\0"))
            found = first - (first - end) % HEADER
            if found == end or not is_checked_header(os.pread(tar.fileno(), HEADER, found)):
                raise Damaged("damaged", found)
            return found
        place += len(block)
    return None


def is_checked_header(block: bytes) -> bool:
    """Returns whether a block is the header of a member, judged by its checksum."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _packed(start: bytes) -> str:
    """Returns that a file is compressed, if its first bytes show it."""
    for magic, name in _PACKERS.items():
        if start.startswith(magic):
            return f"it is compressed ({name}), unpack it first"
    return ""


def is_header(block: bytes, start: int, name: bytes, size: int) -> bool:
    """Returns whether a block has the header of a member at `start`; `name` has its suffix in lower case."""
    # The common case of most writers, checked faster.
    if block.startswith(name + b"\0", start) and block.startswith(b"%011o\0" % size, start + 124):
        return True
    header = block[start : start + HEADER]
    stored = _name_and_size(header)
    if stored is None:
        return False
    # A longer or non-ASCII name is written in full in a header before this one; each kind of tar shortens it here in
    # its own way, or replaces its letters by "?".
    named = stored[0].lower() == name.lower() or not (name.isascii() and len(name) < 100)
    # A size that does not fit as octal digits is written in binary after this bit, or in a header before this one.
    return named and (stored[1] == size or bool(header[124] & 0x80))


def is_extended_header(before: bytes, header: bytes, name: bytes) -> bool:
    """Returns whether a header is the one of a name that an extension gives it.

    Args:
        before: what lies before the header in the tar.
        header: the header.
        name: the name with its suffix in lower case.
    """
    record = b"path=" + name.lower() + b"\n"
    return record in before.lower() and _name_and_size(header) is not None


def _name_and_size(header: bytes) -> tuple[bytes, int] | None:
    """Returns name and size in a header, read as the index reads them; None where it is none."""
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return None
    return found.name.encode("utf-8", "surrogateescape"), found.size
