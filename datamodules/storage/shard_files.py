"""Opens the files of many shards, local or remote: their indexes, and bytes at given offsets."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

from datamodules.storage.index import (
    ShardIndex,
    index_as_bytes,
    index_name,
    load_index,
    parse_index,
    scan_file,
    write_index,
)
from datamodules.storage.open_files import opened, release
from datamodules.storage.remote import is_remote, read_if_there, remote_version
from datamodules.storage.shard_cache import ShardCache
from fvl_lightning.core.errors import DataError, os_error_in_words

log = logging.getLogger(__name__)

DAMAGED = "no index is kept of a damaged tar, so each command scans it again; get it anew, or leave it out"
"""Advice for a damaged shard."""

_INDEXES_AT_ONCE = 16


class OpenedShards(NamedTuple):
    """The index of each tar, and its version if it is remote ("" otherwise)."""

    indexes: list[ShardIndex]
    versions: list[str]


def open_indexes(shards: Sequence[str], cache: ShardCache | None) -> OpenedShards:
    """Returns the indexes of tars (paths or URLs), in their order; missing ones are made.

    Raises:
        DataError: an index is broken or belongs to another tar, a tar cannot be read, or a URL has no cache.
    """
    found = _found_indexes(shards, cache)
    missing = [shard for shard, (index, _) in zip(shards, found, strict=True) if index is None]
    if missing:
        log.info("%d of %d shards have no index (such as %s): scanned now", len(missing), len(shards), missing[0])
    made = [_or_made(cache, shard, *one) for shard, one in zip(shards, found, strict=True)]
    damaged = [shard for shard, index in zip(shards, made, strict=True) if index.damaged]
    if damaged:
        log.warning("%d of %d shards are damaged (such as %s): %s", len(damaged), len(shards), damaged[0], DAMAGED)
    return OpenedShards(made, [version for _, version in found])


def open_index(shard: str, cache: ShardCache | None) -> ShardIndex:
    """As open_indexes for one tar, without logging."""
    (found,) = _found_indexes([shard], cache)
    return _or_made(cache, shard, *found)


class ShardFiles:
    """Reads shards at given offsets. Files stay open in the process that read them; pickling does not copy them.

    Args:
        sizes: the size of each tar in bytes.
        versions: the versions of remote tars when their indexes were opened; no other version is read.
    """

    def __init__(
        self, shards: Sequence[str], sizes: Sequence[int], versions: Sequence[str], cache: ShardCache | None
    ) -> None:
        self._made_of = shards, sizes, versions, cache
        self._owner = object()
        finalize(self, release, self._owner).atexit = False

    def __reduce__(self) -> tuple[type["ShardFiles"], tuple[Any, ...]]:
        return ShardFiles, self._made_of

    def read(self, number: int, start: int, length: int) -> bytes:
        """Returns `length` bytes of a shard from `start` on, fewer at its end; DataError if it cannot be read."""
        shards, sizes, versions, cache = self._made_of
        shard = shards[number]
        look = partial(_open_shard, shard, sizes[number], versions[number], cache)
        try:
            file = opened((self._owner, number), look, is_remote(shard))
            block = os.pread(file.descriptor, length, start)
            while len(block) < length and (more := os.pread(file.descriptor, length - len(block), start + len(block))):
                block += more
        except OSError as error:
            raise DataError(f"shard {shard} cannot be read: {os_error_in_words(error)}") from None
        return block


def _open_shard(shard: str, size: int, version: str, cache: ShardCache | None) -> int:
    if not is_remote(shard):
        return os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    assert cache is not None
    return cache.open(shard, version, size)


def _found_indexes(shards: Sequence[str], cache: ShardCache | None) -> list[tuple[ShardIndex | None, str]]:
    """Returns the index of each tar, None if it must be made, and the version of a remote tar."""
    remote = [is_remote(shard) for shard in shards]
    if not any(remote):
        return [(load_index(Path(shard)), "") for shard in shards]
    if cache is None:
        raise DataError(f"shard {shards[remote.index(True)]} is remote: it needs a folder to keep copies in")
    with ThreadPoolExecutor(_INDEXES_AT_ONCE) as pool:
        return list(pool.map(partial(_find_index, cache), shards, remote))


def _find_index(cache: ShardCache, shard: str, remote: bool) -> tuple[ShardIndex | None, str]:
    """Returns the index next to a shard, or the cached one of this version of a remote shard."""
    if not remote:
        return load_index(Path(shard)), ""
    version, url = remote_version(shard), index_name(shard)
    content = read_if_there(url)
    index = None if content is None else parse_index(content, url)
    made = cache.path(shard, version, ".index")
    if (index is None or index.outdated) and made.is_file():
        index = parse_index(made.read_bytes(), str(made))
    return None if index is None or index.outdated else index, version


def _or_made(cache: ShardCache | None, shard: str, index: ShardIndex | None, version: str) -> ShardIndex:
    """Returns the given index, or makes one now."""
    if index is not None:
        return index
    if not is_remote(shard):
        return write_index(Path(shard))
    assert cache is not None
    with os.fdopen(cache.open(shard, version), "rb") as file:
        index = scan_file(file)
    if not index.damaged:
        cache.keep(index_as_bytes(index), cache.path(shard, version, ".index"))
    return index
