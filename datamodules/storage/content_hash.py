"""A name for the content of shards, by which a changed file is noticed under its old name, size and index."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datamodules.storage.remote import is_remote, remote_version
from fvl_lightning.core.errors import DataError

WHOLE_BYTES = 2**29
"""Shards of this machine that have fewer bytes together are read whole; it takes about a second."""
PLACES = 16_384
"""Of larger sets so many blocks are read, spread evenly over the shards and over the bytes of each."""
BLOCK = 4096
WHOLE_FILE, PLACES_OF_A_FILE = 2**25, 1024
"""Files beside shards, such as weights: up to how many bytes they are read whole, and where beyond that."""
_VERSIONS_AT_ONCE = 16


def content_hash(shards: Sequence[str], sizes: Sequence[int]) -> str:
    """Names the bytes of shards (paths or URLs) with these sizes.

    Sets of up to WHOLE_BYTES are read whole, so that any change is noticed. Of larger ones blocks are read, which
    notices that files were made anew, but may miss a few bytes edited in place. Of a remote file nothing is read: its
    size and its server's version (such as an ETag) count.

    Raises:
        DataError: a shard that cannot be read.
    """
    remote = [shard for shard in shards if is_remote(shard)]
    with ThreadPoolExecutor(_VERSIONS_AT_ONCE) as pool:
        versions = dict(zip(remote, pool.map(remote_version, remote), strict=True))
    whole = sum(size for shard, size in zip(shards, sizes, strict=True) if shard not in versions) <= WHOLE_BYTES
    places = max(1, PLACES // len(shards))
    digest = hashlib.sha256()
    for shard, size in zip(shards, sizes, strict=True):
        found = versions[shard] if shard in versions else _hash_file(shard, size, None if whole else places)
        digest.update(f"{found}\n".encode())
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """Names the files directly in a folder by their names and bytes; of one beyond WHOLE_FILE some blocks are read.

    Raises:
        DataError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = file.stat().st_size
        content = _hash_file(str(file), size, None if size <= WHOLE_FILE else PLACES_OF_A_FILE)
        digest.update(f"{file.name} {size} {content}\n".encode())
    return digest.hexdigest()[:16]


def _hash_file(path: str, size: int, places: int | None) -> str:
    """The hash of a whole file, or of blocks at so many places of it, the first and the last block among them."""
    try:
        with open(path, "rb") as file:
            if places is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            last = max(0, size - BLOCK)
            for number in range(places):
                digest.update(os.pread(file.fileno(), BLOCK, last * number // max(1, places - 1)))
            return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
