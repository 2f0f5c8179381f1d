"""What is in a tar that anyone may have made: samples as WebDataset has them, and what was refused, by reason."""

import io
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

from datamodules.images import MAX_BYTES

HEADER = tarfile.BLOCKSIZE
"""Bytes of the header in front of each member's content."""

MAX_TEXT_BYTES = 16 * 2**20
"""A JSON or text of more than this many bytes is refused."""

EXAMPLES = 3
"""Names that are kept of each kind of problem; all are counted."""

TEXTS = ("json", "txt")
"""The suffixes of members that are no images."""

Member = tuple[str, int, int]
"""Suffix in lower case, offset and size of the content in bytes."""

_MEMBER = re.compile(
    rb"((?:.*/)?[^./]+)\.(json|txt|(?:(\d{1,6})\.)?(?:png|jpe?g|webp|gif|bmp))", re.IGNORECASE | re.DOTALL
)
_UNSAFE = re.compile(rb"/|[A-Za-z]:[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|\Z)|.*[\x00-\x1f\x7f]", re.DOTALL)
_KINDS_IGNORED = 100
_MAX_EXTENSION = 2**20


@dataclass(frozen=True)
class Problem:
    """How often something was refused, and the names of the first EXAMPLES members it was refused in."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, count: int, examples: tuple[str, ...]) -> "Problem":
        """This and more of it."""
        return Problem(self.count + count, (self.examples + examples)[:EXAMPLES])


@dataclass
class Headers:
    """What a tar holds: samples as (key, members: the JSON, the text, then the images in their order).

    `problems` has, by reason, what was refused; `ignored` counts, by suffix, the members that say nothing to us.
    """

    tar_bytes: int
    samples: list[tuple[bytes, list[Member]]] = field(default_factory=list)
    problems: dict[str, Problem] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def refuse(self, reason: str, name: bytes = b"") -> None:
        """Counts a problem, with the name of the member that has it."""
        examples = (readable(name),) if name else ()
        self.problems[reason] = self.problems.get(reason, Problem()).plus(1, examples)

    def ignore(self, name: bytes) -> None:
        """Counts a member that says nothing to us."""
        suffix = readable(name.rpartition(b"/")[2].partition(b".")[2].lower())[:32] or "(none)"
        self.ignored[suffix if suffix in self.ignored or len(self.ignored) < _KINDS_IGNORED else "(others)"] += 1


def read_headers(tar: BinaryIO) -> Headers:
    """Reads a tar's headers from first to last; consecutive members of one key are one sample, as in WebDataset.

    Of a damaged tar all samples are there that are surely whole: not the last one before the damage.

    Args:
        tar: a file opened for reading.

    Raises:
        OSError: it can't be read.
    """
    headers = Headers(os.fstat(tar.fileno()).st_size)
    if headers.tar_bytes == 0:
        headers.refuse("empty file")
        return headers
    grouping = _Grouping(headers)
    reached = 0
    try:
        with (
            _HeaderReader(io.FileIO(tar.fileno(), closefd=False)) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive,
        ):
            for member in archive:
                # A forged size can be negative, and would have the headers read again for ever.
                if member.size < 0 or member.offset_data <= reached:
                    raise tarfile.ReadError
                reached = member.offset_data
                grouping.add(member)
                if reached + -(-member.size // HEADER) * HEADER > headers.tar_bytes:
                    break
                # Else tarfile keeps every header it has seen in memory.
                archive.members.clear()  # type: ignore[attr-defined]
            reached = archive.offset
    except OSError:
        raise
    except Exception:  # whatever its parser raises on forged headers (ValueError, RecursionError ...), it is damaged
        headers.refuse("damaged" if reached else "not a tar")
        return headers
    damage = _damage_at(tar, reached)
    if damage:
        headers.refuse(damage)
    else:
        grouping.close()
    return headers


class _HeaderReader(io.BufferedReader):
    """A tar for its parser, which would read a header's extension into memory however long it says it is."""

    def read(self, size: int | None = -1) -> bytes:
        """As of every file; refuses what no header needs."""
        if size is None or not 0 <= size <= _MAX_EXTENSION:
            raise tarfile.ReadError(f"{size} bytes of header")
        return super().read(size)


def _damage_at(tar: BinaryIO, place: int) -> str | None:
    """What is wrong where the members end: there have to be an end mark and nothing but zeros behind it."""
    tar.seek(place)
    if len(mark := tar.read(HEADER)) < HEADER:
        return "cut short"
    while mark:
        if mark.count(0) != len(mark):
            return "damaged"
        mark = tar.read(2**20)
    return None


class _Grouping:
    """Members to samples. A sample of which a member is refused is refused with it."""

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        self._keys: set[bytes] = set()
        self._key: bytes | None = None
        self._members: dict[str, tuple[int, Member]] = {}
        self._good = True

    def add(self, member: tarfile.TarInfo) -> None:
        """Takes the next member of the tar."""
        if member.isdir():
            return
        name = member.name.encode("utf-8", errors="surrogateescape")
        reason = _reason_to_refuse(member, name)
        match = None if reason == "unsafe name" else _MEMBER.fullmatch(name)
        if match is None and reason is None:
            self._headers.ignore(name)
        if match is not None and match[1] != self._key:
            self.close()
            self._key = match[1]
        suffix = match[2].lower().decode() if match is not None else ""
        if reason is None and suffix in self._members:
            self._headers.refuse("duplicate member", name)
        elif reason is not None:
            self._headers.refuse(reason, name)
            self._good = self._good and match is None
        elif match is not None:
            order = TEXTS.index(suffix) - len(TEXTS) if suffix in TEXTS else int(match[3] or 0)
            self._members[suffix] = (order, (suffix, member.offset_data, member.size))

    def close(self) -> None:
        """What has been added is whole: no more members of this key follow."""
        if self._key is not None and self._good:
            if self._key in self._keys:
                self._headers.refuse("duplicate key", self._key)
            else:
                members = sorted(self._members.values(), key=lambda found: found[0])
                self._headers.samples.append((self._key, [member for _, member in members]))
        if self._key is not None:
            self._keys.add(self._key)
        self._key, self._members, self._good = None, {}, True


def readable(name: bytes) -> str:
    """A name for people; bytes that are not UTF-8 are written \\xNN."""
    return name.decode("utf-8", errors="backslashreplace")


def _reason_to_refuse(member: tarfile.TarInfo, name: bytes) -> str | None:
    if _UNSAFE.match(name):
        return "unsafe name"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    match = _MEMBER.fullmatch(name)
    if match is not None and member.size > (MAX_TEXT_BYTES if match[2].lower().decode() in TEXTS else MAX_BYTES):
        return "too large"
    return None


def is_header(block: bytes, start: int, name: bytes, size: int) -> bool:
    """Whether at `start` of a block there is the header of a member; `name` has its suffix in lower case."""
    # As most writers make it, found out in less time.
    if block.startswith(name + b"\0", start) and block.startswith(b"%011o\0" % size, start + 124):
        return True
    header = block[start : start + HEADER]
    try:
        # What does not fit as octal digits is written in binary, behind this bit.
        if not header[124] & 0x80 and int(header[124:136].rstrip(b"\0 "), 8) != size:
            return False
    except ValueError:
        return False
    stored = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    if prefix:
        stored = prefix + b"/" + stored
    # A longer name is cut at 100 bytes, and stands whole in a header in front of this one.
    return stored.lower() == name.lower() or (len(stored) >= 100 and name.lower().startswith(stored.lower()))
