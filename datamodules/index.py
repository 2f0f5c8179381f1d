"""The byte-offset index beside a shard: which sample lies where, so that any one is read with a single seek.

`train-000000.tar` has `train-000000.index.npz` with plain arrays (n samples, m members, in the order of the tar):
    keys            [n]    the samples' keys
    first_member    [n+1]  member j belongs to sample i where first_member[i] <= j < first_member[i+1]
    suffixes        [m]    what follows the key and a dot in the member's name: json, txt, png, 0.png, 1.png ...
    offsets, sizes  [m]    the member's content in bytes from the start of the tar
    tar_bytes       []     the size of the tar the index was made of
"""

import logging
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fvl_lightning.core.errors import DataError

log = logging.getLogger(__name__)

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.((?:\d+\.)?(?:png|jpg|jpeg|webp)|json|txt)", re.IGNORECASE)
"""The members that are read: key and suffix. All others (pickles, say) are passed over."""

HEADER = 512
"""Bytes of the header in front of each member's content."""


@dataclass(frozen=True)
class ShardIndex:
    """The arrays of one index file; see the head of this file."""

    keys: NDArray[np.str_]
    first_member: NDArray[np.int64]
    suffixes: NDArray[np.str_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    tar_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


def index_path(tar: Path) -> Path:
    """Where the index of a shard lies."""
    return tar.with_suffix(".index.npz")


def write_index(tar: Path) -> ShardIndex:
    """Reads the headers of an existing tar and writes its index beside it.

    Raises:
        DataError: no tar, cut short, or two members of one name in a sample.
    """
    index = scan_tar(tar)
    save_index(index, index_path(tar))
    return index


def save_index(index: ShardIndex, path: Path) -> None:
    """Writes the arrays to `path`, whole or not at all."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **{f.name: getattr(index, f.name) for f in fields(index)})


def open_index(tar: Path) -> ShardIndex:
    """The index of a shard; one that has none yet is indexed now, in memory only where its folder can't be written.

    Raises:
        DataError: the index is broken or was made of another tar, or the tar can't be indexed.
    """
    path = index_path(tar)
    if not path.is_file():
        index = scan_tar(tar)
        try:
            save_index(index, path)
        except OSError as error:
            log.warning("the index %s can't be written (%s), so the next run makes it again", path, error.strerror)
        return index
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = ShardIndex(**{f.name: arrays[f.name] for f in fields(ShardIndex)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"index {path} can't be read ({error}); delete it and it is rebuilt") from None
    found = tar.stat().st_size
    if int(index.tar_bytes) != found:
        raise mismatch(tar, f"it was made of {int(index.tar_bytes)} bytes, there are {found}")
    return index


def mismatch(tar: Path, reason: str) -> DataError:
    """The error for an index that was made of another tar."""
    return DataError(f"index {index_path(tar)} does not match its tar: {reason}; delete the index and it is rebuilt")


def scan_tar(tar: Path) -> ShardIndex:
    """Reads a tar's headers from first to last; consecutive members of one key are one sample, as in WebDataset."""
    keys: list[str] = []
    first_member: list[int] = []
    members: list[tuple[str, int, int]] = []
    names: set[str] = set()
    for name, offset, size in _members(tar):
        match = _MEMBER.fullmatch(name)
        if match is None:
            continue
        key, suffix = match[1], match[2].lower()
        if not keys or keys[-1] != key:
            keys.append(key)
            first_member.append(len(members))
            names.clear()
        if suffix in names:
            raise DataError(f"{tar}: sample '{key}' has two members named {name}")
        names.add(suffix)
        members.append((suffix, offset, size))
    return ShardIndex(
        keys=np.array(keys, dtype=np.str_),
        first_member=np.array([*first_member, len(members)], dtype=np.int64),
        suffixes=np.array([suffix for suffix, _, _ in members], dtype=np.str_),
        offsets=np.array([offset for _, offset, _ in members], dtype=np.int64),
        sizes=np.array([size for _, _, size in members], dtype=np.int64),
        tar_bytes=np.array(tar.stat().st_size, dtype=np.int64),
    )


def _members(tar: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file; raises DataError where the tar ends before its end mark."""
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
                # Else tarfile keeps every header it has seen in memory.
                archive.members.clear()  # type: ignore[attr-defined]
            end = archive.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"shard {tar} can't be read as a tar: {error}") from None
    with tar.open("rb") as file:
        file.seek(end)
        if file.read(HEADER) != bytes(HEADER):
            raise DataError(f"shard {tar} is cut short or damaged: its end mark is missing")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file's name beside `path`, renamed to it at the end; removed, with `path` untouched, on any error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
