"""Finds the samples of an untrusted tar, and what of it is refused or ignored.

Training, the commands on shards and the source img2dataset all read tars through this module.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from datamodules.images.decoding import EXTENSIONS
from datamodules.images.limits import MAX_BYTES
from datamodules.storage.tar_headers import Damaged, members_of

MAX_TEXT_BYTES = 16 * 2**20
"""A JSON or text of more than this many bytes is refused."""

EXAMPLES = 3
"""Names that are kept for each kind of problem; all are counted."""

TEXTS = ("json", "txt")
"""The suffixes of text members."""

END_MARK = b"(end mark)"
"""Name under which an end mark before more members is counted; joined tars have them."""

HIDDEN = b"(hidden)"
"""Name under which hidden files are counted, such as the ._a.jpg that macOS adds to a tar."""

LABEL = b"(label)"
"""Name under which a volume label is counted, which GNU tar writes as a member of its own."""

_LABEL = b"V"

Member = tuple[str, int, int]
"""Suffix in lower case, offset and size of the content in bytes."""

_MEMBER = re.compile(
    rb"((?:.*/)?[^./][^/]*)\.(%s)" % "|".join((*TEXTS, *EXTENSIONS)).encode(), re.IGNORECASE | re.DOTALL
)
_NUMBERED = re.compile(rb"((?:.*/)?[^./][^/]*)\.(\d{1,6})", re.DOTALL)
_UNSAFE = re.compile(rb"/|[A-Za-z]:[/\\]|(?:.*[/\\])?\.\.(?:[/\\]|\Z)|.*[\x00-\x1f\x7f]", re.DOTALL)
_KINDS_IGNORED = 100
_MOST_DOTS = 32


@dataclass(frozen=True)
class Problem:
    """The number of refusals for one reason, and the names of the first EXAMPLES members."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, count: int, examples: tuple[str, ...]) -> "Problem":
        """Returns the problem with more refusals added."""
        return Problem(self.count + count, (self.examples + examples)[:EXAMPLES])


class TarSample(NamedTuple):
    """A sample: the offset of its first header, its key, and its members: JSON, text, then the images in order."""

    place: int
    key: bytes
    members: list[Member]


class RefusedEntry(NamedTuple):
    """A sample, or a member that belongs to none, that cannot be used.

    Attributes:
        place: the offset of its header, or of the damage.
        reason: a short category to count by.
        name: the name of the member or the key; empty if the tar itself is damaged.
        detail: more about the damage.
    """

    place: int
    reason: str
    name: bytes = b""
    detail: str = ""


@dataclass
class Headers:
    """The content of a tar: every sample is in `samples` or `refused`, in the order of the tar.

    `passed_over` has the members that are not read: the offset of the header and the suffix of each.
    """

    tar_bytes: int
    samples: list[TarSample] = field(default_factory=list)
    refused: list[RefusedEntry] = field(default_factory=list)
    passed_over: list[tuple[int, str]] = field(default_factory=list)

    @property
    def ignored(self) -> Counter[str]:
        """The number of members that are not read, by suffix; folders are not counted."""
        counts: Counter[str] = Counter()
        for _, kind in sorted(self.passed_over):
            counts[kind if kind in counts or len(counts) < _KINDS_IGNORED else "(others)"] += 1
        return counts

    @property
    def problems(self) -> dict[str, Problem]:
        """The refusals, by reason."""
        found: dict[str, Problem] = {}
        for refused in self.refused:
            examples = (readable(refused.name),) if refused.name else ((refused.detail,) if refused.detail else ())
            found[refused.reason] = found.get(refused.reason, Problem()).plus(1, examples)
        return found

    def pass_over(self, place: int, suffix: bytes) -> None:
        """Records a member that is not read."""
        self.passed_over.append((place, readable(suffix)[:32] or "(none)"))


def read_headers(tar: BinaryIO) -> Headers:
    """Reads a tar's headers from first to last; the members of one key are one sample.

    The key of a member is its name up to the suffix. A key may have dots: `a.1.jpg` is the second image of `a`, unless
    a text `a.1.json` or `a.1.txt` makes it a sample of its own. A longer name that begins with a sample's key
    (`a.seg.png` next to `a.jpg`) is ignored, unless it is a complete sample itself. Members of one key that lie apart
    are joined if they complete each other; otherwise the first ones are the sample and the others a duplicate.

    A damaged tar gives the samples that are certainly complete: all before the damage, except the last one.

    Args:
        tar: a file opened for reading; its own position does not matter.

    Raises:
        OSError: it cannot be read.
    """
    headers = Headers(os.fstat(tar.fileno()).st_size)
    found: list[_Found] = []
    damage = None
    try:
        for member in members_of(tar):
            if isinstance(member, int):
                headers.pass_over(member, END_MARK)
            elif member.type == _LABEL:
                headers.pass_over(member.offset, LABEL)
            elif not member.isdir():
                _classify(member, headers, found)
    except Damaged as damaged:
        where = damaged.detail or (f"at byte {damaged.place} of {headers.tar_bytes}" if damaged.place else "")
        damage = RefusedEntry(damaged.place, damaged.reason, detail=where)
    _group(found, headers, complete=damage is None)
    if damage is not None:
        headers.refused.append(damage)
    return headers


class _Found(NamedTuple):
    """A member with a suffix that is read; `stem` is its name before the suffix, `reason` why it cannot be used."""

    place: int
    name: bytes
    stem: bytes
    suffix: str
    offset: int
    size: int
    reason: str | None

    @property
    def is_text(self) -> bool:
        return self.suffix in TEXTS


def _classify(member: tarfile.TarInfo, headers: Headers, found: list[_Found]) -> None:
    name = member.name.encode("utf-8", errors="surrogateescape")
    base = name.rpartition(b"/")[2]
    match = _MEMBER.fullmatch(name)
    if _UNSAFE.match(name):
        headers.refused.append(RefusedEntry(member.offset, "unsafe name", name))
    elif match is not None:
        suffix = match[2].lower().decode()
        reason = _reason_to_refuse(member, suffix)
        found.append(_Found(member.offset, name, match[1], suffix, member.offset_data, member.size, reason))
    elif base.startswith(b"."):
        headers.pass_over(member.offset, HIDDEN)
    elif not _is_plain(member):
        headers.refused.append(RefusedEntry(member.offset, "not a regular file", name))
    else:
        headers.pass_over(member.offset, base.partition(b".")[2].lower())


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _reason_to_refuse(member: tarfile.TarInfo, suffix: str) -> str | None:
    if not _is_plain(member):
        return "not a regular file"
    return "too large" if member.size > (MAX_TEXT_BYTES if suffix in TEXTS else MAX_BYTES) else None


@dataclass
class _Run:
    """Consecutive members of one key in a tar."""

    key: bytes
    members: dict[str, _Found] = field(default_factory=dict)

    @property
    def first(self) -> _Found:
        return next(iter(self.members.values()))

    @property
    def is_whole(self) -> bool:
        """Returns whether it has both a text and an image."""
        return len({member.is_text for member in self.members.values()}) == 2

    def completes(self, earlier: "_Run") -> bool:
        """Returns whether this and an earlier run of the key can form one sample."""
        return not (self.is_whole and earlier.is_whole) and self.members.keys().isdisjoint(earlier.members)


def _group(found: list[_Found], headers: Headers, complete: bool) -> None:
    """Groups the members into samples; leaves out the last one if the tar is not `complete`."""
    samples: dict[bytes, list[_Run]] = {}
    last = b""
    for run in _runs(found, headers):
        last = run.key
        of_key = samples.setdefault(run.key, [])
        if of_key and run.completes(of_key[-1]):
            of_key[-1].members.update(run.members)
        else:
            of_key.append(run)
    if not complete:
        samples.pop(last, None)
    for key, (run, *others) in samples.items():
        headers.refused += [RefusedEntry(other.first.place, "duplicate key", key) for other in others]
        bad = next((member for member in run.members.values() if member.reason), None)
        if bad is not None:
            headers.refused.append(RefusedEntry(bad.place, bad.reason or "", bad.name))
        else:
            members = sorted(run.members.items(), key=lambda item: _order(item[0]))
            places = [(suffix, member.offset, member.size) for suffix, member in members]
            headers.samples.append(TarSample(run.first.place, key, places))
    headers.refused.sort(key=lambda refused: refused.place)


def _runs(found: list[_Found], headers: Headers) -> Iterator[_Run]:
    """Yields runs of members of one key; refuses a second member of a name, and ignores extras."""
    stems = {member.stem for member in found if member.is_text}
    keyed = [(_key(member, stems), member) for member in found]
    texts = {key for key, member in keyed if member.is_text}
    images = {key for key, member in keyed if not member.is_text}
    run: _Run | None = None
    for key, member in keyed:
        owner = None if key in texts and key in images else _owner(key, texts, images)
        if owner is not None:
            headers.pass_over(member.place, member.name[len(owner) + 1 :].lower())
            continue
        if run is None or run.key != key:
            if run is not None:
                yield run
            run = _Run(key)
        suffix = member.name[len(key) + 1 :].lower().decode()
        if suffix in run.members:
            headers.refused.append(RefusedEntry(member.place, "duplicate member", member.name))
        else:
            run.members[suffix] = member
    if run is not None:
        yield run


def _key(member: _Found, stems: set[bytes]) -> bytes:
    """Returns the key of a member's sample, without the number of an image, unless a text has that number too."""
    if member.is_text or member.stem in stems:
        return member.stem
    numbered = _NUMBERED.fullmatch(member.stem)
    return member.stem if numbered is None else numbered[1]


def _owner(key: bytes, texts: set[bytes], images: set[bytes]) -> bytes | None:
    """Returns the sample key that this key extends, as a.seg extends a; None if there is none."""
    folder, slash, base = key.rpartition(b"/")
    parts = base.split(b".", _MOST_DOTS)
    for number in range(1, len(parts)):
        owner = folder + slash + b".".join(parts[:number])
        if owner in texts or owner in images:
            return owner
    return None


def _order(suffix: str) -> int:
    """Returns the place of a member in its sample by its suffix: JSON, text, then the images by number."""
    return TEXTS.index(suffix) - len(TEXTS) if suffix in TEXTS else int(suffix.rpartition(".")[0] or 0)


def readable(name: bytes) -> str:
    """Returns a printable name; bytes that are not UTF-8 are written \\xNN."""
    return name.decode("utf-8", errors="backslashreplace")
