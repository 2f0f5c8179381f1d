"""A local cache of remote shards, bounded in bytes."""

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from datamodules.storage.remote import (
    COPY_BLOCK_BYTES,
    POLL_SECONDS,
    _filesystem,
    _known,
    explain_url_errors,
    remote_version,
)
from fvl_lightning.core.atomic import atomic_write, rename_into_place
from fvl_lightning.core.errors import DataError


@dataclass(frozen=True)
class ShardCache:
    """A folder with copies of remote files; the least recently used ones make room for others.

    Any number of processes may share it. Its files, those being downloaded included, never exceed `max_bytes`. A copy
    that is evicted while it is open stays readable, and occupies the disk, until it is closed.
    """

    folder: Path
    max_bytes: int

    def get(self, url: str) -> Path:
        """Returns the path of a copy of a remote file's current version; another process may evict it."""
        version = remote_version(url)
        os.close(self.open(url, version))
        return self.path(url, version)

    def path(self, url: str, version: str, suffix: str = ".tar") -> Path:
        """Returns the path of the copy of a version (see remote_version) of a remote file, or of a related file."""
        return self.folder / (hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32] + suffix)

    def open(self, url: str, version: str, size: int | None = None) -> int:
        """Returns a descriptor of the copy of a remote file, which is downloaded first if there is none.

        Args:
            version: that of remote_version; the server is not asked if there is a copy of it.
            size: the number of bytes that it must have.

        Raises:
            DataError: the file cannot be downloaded, has another version or another size, or is larger than the whole
                cache.
        """
        try:
            found = _open_copy(self.path(url, version), size)
            return self._open_fetched(url, version, size) if found is None else found
        except OSError as error:
            raise DataError(f"{self.folder} cannot hold copies of shards: {error.strerror}") from None

    def keep(self, content: bytes, path: Path) -> None:
        """Writes a small file to a `path` of this cache, if there is room for it."""
        try:
            with self._changing():
                if self._make_room(len(content)):
                    with atomic_write(path) as tmp_path:
                        tmp_path.write_bytes(content)
        except OSError as error:
            raise DataError(f"{self.folder} cannot hold copies of shards: {error.strerror}") from None

    def _open_fetched(self, url: str, version: str, size: int | None) -> int:
        path, part = self.path(url, version), self.path(url, version, ".part")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path(url, version, ".lock")):
            found = _open_copy(path, size)
            if found is None:
                self._fetch(url, version, part)
                with self._changing():
                    rename_into_place(part, path)
                    # Before another process may evict it.
                    found = _open_copy(path, size)
            if found is None:
                raise DataError(f"{url} has {path.stat().st_size} bytes, its index was made of {size}")
        return found

    def _fetch(self, url: str, version: str, part: Path) -> None:
        try:
            with explain_url_errors(url, "read"):
                files, path = _filesystem(url)
                with files.open(path, "rb") as remote:
                    size = _known(remote.size, url)
                    self._reserve(url, part, size)
                    with part.open("r+b") as file:
                        _copy(remote, file, size, url)
            # Asked after the last byte, so that a file that is replaced during the download is noticed too.
            if remote_version(url) != version:
                raise DataError(f"{url} was replaced by another version since it was opened; start again")
        except BaseException:
            with self._changing():
                part.unlink(missing_ok=True)
            raise

    def _reserve(self, url: str, part: Path, size: int) -> None:
        """Makes room, and reserves it with an empty file of that size."""
        if size > self.max_bytes:
            raise DataError(f"{url} has {size} bytes, more than the {self.max_bytes} that {self.folder} may hold")
        while True:
            with self._changing():
                part.unlink(missing_ok=True)
                if self._make_room(size):
                    with part.open("wb") as file:
                        file.truncate(size)
                    return
            time.sleep(POLL_SECONDS)

    def _make_room(self, size: int) -> bool:
        """Evicts files until `size` more bytes fit; False if other processes are downloading all that is left."""
        entries = [(entry, entry.stat()) for entry in os.scandir(self.folder) if entry.is_file(follow_symlinks=False)]
        total = sum(stat.st_size for _, stat in entries)
        for entry, stat in sorted(entries, key=lambda found: found[1].st_mtime_ns):
            if total + size <= self.max_bytes:
                break
            if stat.st_size and self._evict(Path(entry.path)):
                total -= stat.st_size
        return total + size <= self.max_bytes

    def _evict(self, path: Path) -> bool:
        """Removes a file, unless it is being downloaded."""
        if path.suffix != ".part":
            path.unlink(missing_ok=True)
            return True
        # A partial file that no process is downloading was left by a killed process.
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _changing(self) -> FileLock:
        """Returns the lock of the process that adds or removes files."""
        return FileLock(self.folder / "lock")


CACHE_GIGABYTES = 50.0
"""Disk space for copies of remote shards."""


def shard_cache() -> ShardCache:
    """Returns the cache of remote shards."""
    return default_cache(CACHE_GIGABYTES)


def default_cache(gigabytes: float) -> "ShardCache":
    """Returns the cache that all commands of this user share, limited to so many gigabytes (10^9 bytes)."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return ShardCache(Path(caches) / "fvl_lightning" / "shards", int(gigabytes * 1e9))


def _open_copy(path: Path, size: int | None) -> int | None:
    """Returns a descriptor of the file and marks it as used last; None if there is none of that size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if size is not None and os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    with suppress(OSError):  # a cache that other users filled may be read-only
        os.utime(descriptor)
    return descriptor


def _copy(remote: IO[bytes], file: IO[bytes], size: int, url: str) -> None:
    copied = 0
    while block := remote.read(COPY_BLOCK_BYTES):
        copied += len(block)
        if copied > size:
            break
        file.write(block)
    if copied != size:
        raise DataError(f"{url} was announced with {size} bytes and came with another number of them")
