"""A hash of the content of shards, which shows that a file has changed even if name, size and index are the same."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datamodules.storage.remote import is_remote, remote_version
from fvl_lightning.core.errors import DataError

WHOLE_BYTES = 2**29
"""Local shards with fewer bytes together are read completely, which takes about a second."""
PLACES = 16_384
"""Blocks read of a larger set, spread evenly over the shards and over the bytes of each."""
BLOCK = 4096
WHOLE_FILE, PLACES_OF_A_FILE = 2**25, 1024
"""For other files, such as weights: the largest size that is read completely, and the blocks read of a larger file."""
_VERSIONS_AT_ONCE = 16


def content_hash(shards: Sequence[str], sizes: Sequence[int]) -> str:
    """Returns a hash of shards (paths or URLs) with these sizes.

    Sets of up to WHOLE_BYTES are read completely, so that any change is noticed. Only blocks of larger sets are read,
    which shows that files were replaced, but may miss a few bytes edited in place. Remote files are not read: their
    size and their server's version (such as an ETag) count.

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
        found = versions[shard] if shard in versions else hash_file(shard, size, None if whole else places)
        digest.update(f"{found}\n".encode())
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns {name: hash} of the files directly in a folder, of blocks of those beyond WHOLE_FILE.

    Raises:
        DataError: a file that cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    sizes = {file: file.stat().st_size for file in files}
    return {
        file.name: hash_file(str(file), size, None if size <= WHOLE_FILE else PLACES_OF_A_FILE)
        for file, size in sizes.items()
    }


def folder_hash(folder: Path) -> str:
    """Returns a hash of the names and bytes of the files directly in a folder; blocks of those beyond WHOLE_FILE.

    Raises:
        DataError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = file.stat().st_size
        content = hash_file(str(file), size, None if size <= WHOLE_FILE else PLACES_OF_A_FILE)
        digest.update(f"{file.name} {size} {content}\n".encode())
    return digest.hexdigest()[:16]


def hash_file(path: str, size: int, places: int | None) -> str:
    """Returns the hash of a whole file, or of `places` blocks of it, with its first and last block.

    Raises:
        DataError: it cannot be read.
    """
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
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
