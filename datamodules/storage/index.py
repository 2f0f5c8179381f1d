"""The byte-offset index of a shard: where each sample is, so that any one is read with a single seek.

`train-000000.tar` has `train-000000.index.safetensors` with these arrays (n samples, m members; the members of a sample
follow each other: its JSON, its text, then its images in order):
    key_bytes     [..] uint8   the samples' keys, one behind the other, as the tar spells them
    key_ends      [n] uint32   where in key_bytes each key ends
    member_ends   [n] uint32   member j belongs to sample i where member_ends[i-1] <= j < member_ends[i]
    suffix_codes  [m] uint8, or wider where there are more: which of `suffixes` follows the key and a dot
    offsets       [m] int64    where the member's content begins, in bytes from the start of the tar
    sizes         [m] uint32   its length in bytes
    summary       [..] uint8   a JSON with `suffixes` (json, txt, png, 0.png, 1.png ...), `tar_bytes` (the size of the
                               tar the index was made of), `problems` and `ignored` (see ShardIndex), `version`, and
                               `checksum` (CRC-32 of all of this; indexes of earlier versions have none)

An index of an earlier version that left out a part of its tar is rebuilt, because this version may read that part.
"""

import json
import logging
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from datamodules.storage.tar_grouping import Member, Problem, read_headers, readable
from datamodules.storage.tar_headers import HEADER
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError

log = logging.getLogger(__name__)

VERSION = 2
"""Version of the index; it rises whenever another part of the same tar is left out."""

DAMAGE = ("empty file", "not a tar", "cut short", "damaged")
"""Problems that lose samples of a tar. Its index is not kept, because the tar may be an unfinished copy."""


@dataclass(frozen=True)
class ShardIndex:
    """The arrays of one index, see the docstring of this module.

    `problems` has the refused content of the tar by reason; `ignored` counts the members that are not read (such as
    pickles) by suffix.
    """

    key_bytes: bytes
    key_ends: NDArray[np.uint32]
    member_ends: NDArray[np.uint32]
    suffix_codes: NDArray[np.unsignedinteger[Any]]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    suffixes: tuple[str, ...]
    tar_bytes: int
    problems: Mapping[str, Problem] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    version: int = field(default=VERSION, compare=False)

    def __len__(self) -> int:
        return len(self.key_ends)

    @property
    def damaged(self) -> bool:
        """Returns whether the tar has lost samples."""
        return any(reason in self.problems for reason in DAMAGE)

    @property
    def outdated(self) -> bool:
        """Returns whether the index must be rebuilt: an earlier version left out a part of the tar."""
        return self.version < VERSION and bool(self.problems or self.ignored)

    def raw_key(self, row: int) -> bytes:
        """Returns a sample's key as the tar spells it."""
        return self.key_bytes[self.key_ends.item(row - 1) if row else 0 : self.key_ends.item(row)]

    def key(self, row: int) -> str:
        """Returns a sample's key; bytes that are not UTF-8 are written \\xNN."""
        return readable(self.raw_key(row))

    def members(self, row: int) -> tuple[int, int]:
        """Returns the number of a sample's first member, and of the first member after them."""
        return self.member_ends.item(row - 1) if row else 0, self.member_ends.item(row)


def make_index(
    samples: Iterable[tuple[bytes, Sequence[Member]]],
    tar_bytes: int,
    problems: Mapping[str, Problem] | None = None,
    ignored: Mapping[str, int] | None = None,
) -> ShardIndex:
    """Returns the index of samples, each a key and its members in the order of ShardIndex."""
    codes: dict[str, int] = {}
    keys, key_ends, member_ends, members = bytearray(), [], [], []
    for key, found in samples:
        keys += key
        members += [(codes.setdefault(suffix, len(codes)), offset, size) for suffix, offset, size in found]
        key_ends.append(len(keys))
        member_ends.append(len(members))
    columns = np.array(members, dtype=np.int64).reshape(-1, 3).T
    return ShardIndex(
        key_bytes=bytes(keys),
        key_ends=np.array(key_ends, dtype=np.uint32),
        member_ends=np.array(member_ends, dtype=np.uint32),
        suffix_codes=columns[0].astype(np.min_scalar_type(max(len(codes) - 1, 0))),
        offsets=np.ascontiguousarray(columns[1]),
        sizes=columns[2].astype(np.uint32),
        suffixes=tuple(codes),
        tar_bytes=tar_bytes,
        problems=problems or {},
        ignored=ignored or {},
    )


def index_path(tar: Path) -> Path:
    """Returns the path of the index of a shard."""
    return Path(index_name(str(tar)))


def index_name(shard: str) -> str:
    """Returns the path or URL of the index of a shard."""
    return re.sub(r"\.tar(?=$|\?)", ".index.safetensors", shard)


def write_index(tar: Path) -> ShardIndex:
    """Reads the headers of a tar and writes its index next to it, unless the tar is damaged or its folder read-only.

    Raises:
        DataError: the tar cannot be read at all.
    """
    index = scan_tar(tar)
    if not index.damaged:
        try:
            save_index(index, index_path(tar))
        except OSError as error:
            log.warning("index %s cannot be written (%s), so the next run makes it again", index_path(tar), error)
    return index


def scan_tar(tar: Path) -> ShardIndex:
    """Returns the index of a tar, made from its headers; its problems count what cannot be used.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        with tar.open("rb") as file:
            return scan_file(file)
    except OSError as error:
        raise DataError(f"shard {tar} cannot be read: {error.strerror}") from None


def scan_file(tar: BinaryIO) -> ShardIndex:
    """As scan_tar for an open file; OSError if it cannot be read."""
    found = read_headers(tar)
    samples = ((sample.key, sample.members) for sample in found.samples)
    return make_index(samples, found.tar_bytes, found.problems, found.ignored)


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes an index to `path` atomically."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_bytes(index_as_bytes(index))


def index_as_bytes(index: ShardIndex) -> bytes:
    """Returns the content of an index file."""
    summary = {**_summary(index, VERSION), "checksum": _checksum(index, VERSION)}
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    for name, content in (("key_bytes", index.key_bytes), ("summary", json.dumps(summary).encode())):
        arrays[name] = np.frombuffer(content, dtype=np.uint8)
    return save(arrays)


def _summary(index: ShardIndex, version: int) -> dict[str, Any]:
    return {
        "suffixes": index.suffixes,
        "tar_bytes": index.tar_bytes,
        "problems": {reason: [found.count, found.examples] for reason, found in index.problems.items()},
        "ignored": dict(index.ignored),
        "version": version,
    }


def _checksum(index: ShardIndex, version: int) -> int:
    """Returns the CRC-32 of all that an index file holds."""
    found = zlib.crc32(json.dumps(_summary(index, version)).encode() + index.key_bytes)
    for name in _ARRAYS:
        found = zlib.crc32(np.ascontiguousarray(getattr(index, name)).view(np.uint8).data, found)
    return found


def open_index(tar: Path) -> ShardIndex:
    """Returns the index of a shard; a shard without one is indexed now, see write_index.

    Raises:
        DataError: there is no such tar, or its index is broken or belongs to another tar.
    """
    index = load_index(tar)
    return write_index(tar) if index is None else index


def load_index(tar: Path) -> ShardIndex | None:
    """Returns the index of a shard, None if there is none or it is outdated; errors as of open_index."""
    path = index_path(tar)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"index {path} cannot be read: {error.strerror}") from None
    index = parse_index(content, str(path))
    try:
        found = tar.stat().st_size
    except OSError as error:
        raise DataError(f"shard {tar} cannot be read: {error.strerror}") from None
    if index.tar_bytes != found:
        raise mismatch(str(path), f"it was made of {index.tar_bytes} bytes, there are {found}")
    return None if index.outdated else index


def mismatch(index: str, reason: str) -> DataError:
    """Returns the error for an index that belongs to another tar."""
    return DataError(f"index {index} does not match its tar: {reason}; delete the index and it is rebuilt")


_ARRAYS = {
    "key_ends": (np.uint32,),
    "member_ends": (np.uint32,),
    "suffix_codes": (np.uint8, np.uint16, np.uint32),
    "offsets": (np.int64,),
    "sizes": (np.uint32,),
}


def parse_index(content: bytes, name: str) -> ShardIndex:
    """Returns the index in the bytes of a file called `name`; DataError if they are no index."""
    try:
        arrays = load(content)
        summary = json.loads(arrays["summary"].tobytes())
        problems = {reason: Problem(int(n), tuple(names)) for reason, (n, names) in summary["problems"].items()}
        index = ShardIndex(
            key_bytes=arrays["key_bytes"].tobytes(),
            suffixes=tuple(map(str, summary["suffixes"])),
            tar_bytes=int(summary["tar_bytes"]),
            problems=problems,
            ignored={str(suffix): int(count) for suffix, count in summary["ignored"].items()},
            version=int(summary.get("version", 1)),
            **{name: arrays[name] for name in _ARRAYS},
        )
        _check(index)
        if summary.get("checksum") not in (None, _checksum(index, index.version)):
            raise ValueError("its checksum is wrong")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"index {name} cannot be read ({reason}); delete it and it is rebuilt") from None
    return index


def _check(index: ShardIndex) -> None:
    """Raises ValueError if the arrays do not fit together."""
    for name, allowed in _ARRAYS.items():
        array = getattr(index, name)
        if array.ndim != 1 or array.dtype not in allowed:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
    members = len(index.offsets)
    conditions = (
        _splits(index.key_ends, len(index.key_bytes)),
        _splits(index.member_ends, members),
        len(index.key_ends) == len(index.member_ends),
        len(index.sizes) == len(index.suffix_codes) == members,
        (index.suffix_codes < len(index.suffixes)).all(),
        (index.offsets >= HEADER).all() and (index.offsets <= index.tar_bytes).all(),
    )
    if not all(conditions) or not (index.sizes <= index.tar_bytes - index.offsets).all():
        raise ValueError("its arrays contradict each other")


def _splits(ends: NDArray[np.uint32], length: int) -> bool:
    """Returns whether `ends` divide a sequence of that length into pieces, none of them empty."""
    return (int(ends[-1]) if len(ends) else 0) == length and bool((np.diff(ends.astype(np.int64), prepend=0) > 0).all())
