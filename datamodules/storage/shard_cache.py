"""A local cache of remote shards, bounded in bytes."""

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from datamodules.storage.remote import _COPIED_AT_ONCE, _PATIENCE, _filesystem, _known, _told, remote_version
from fvl_lightning.core.atomic import atomic_write, rename_into_place
from fvl_lightning.core.errors import DataError


@dataclass(frozen=True)
class ShardCache:
    """A folder with copies of remote files, of which those used least recently make room for others.

    Any number of processes may share it. The files in it, those on their way included, never have more than
    `max_bytes` together. A copy that goes while it is open stays readable, and keeps its place on the disk, until it is
    closed.
    """

    folder: Path
    max_bytes: int

    def get(self, url: str) -> Path:
        """Where the copy of a remote file, as it is now, is; see `open`, which is safe from its going away at once."""
        version = remote_version(url)
        os.close(self.open(url, version))
        return self.path(url, version)

    def path(self, url: str, version: str, suffix: str = ".tar") -> Path:
        """Where the copy of a version (see remote_version) of a remote file, or what belongs to it, is kept."""
        return self.folder / (hashlib.sha256(f"{url}\n{version}".encode()).hexdigest()[:32] + suffix)

    def open(self, url: str, version: str, size: int | None = None) -> int:
        """A descriptor to read the copy of a remote file with, fetched first where there is none.

        Args:
            version: that of remote_version; nothing is asked of the server where a copy of it is there.
            size: the bytes it must have.

        Raises:
            DataError: the file can't be fetched, is of another version or has not `size` bytes, or is larger than the
                whole cache.
        """
        try:
            found = _open_copy(self.path(url, version), size)
            return self._open_fetched(url, version, size) if found is None else found
        except OSError as error:
            raise DataError(f"{self.folder} can't hold copies of shards: {error.strerror}") from None

    def keep(self, content: bytes, path: Path) -> None:
        """Writes a small file of our own making to a `path` of this cache, if there is room for it."""
        try:
            with self._changing():
                if self._make_room(len(content)):
                    with atomic_write(path) as beside:
                        beside.write_bytes(content)
        except OSError as error:
            raise DataError(f"{self.folder} can't hold copies of shards: {error.strerror}") from None

    def _open_fetched(self, url: str, version: str, size: int | None) -> int:
        path, part = self.path(url, version), self.path(url, version, ".part")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path(url, version, ".lock")):
            found = _open_copy(path, size)
            if found is None:
                self._fetch(url, version, part)
                with self._changing():
                    rename_into_place(part, path)
                    # Before anyone else may evict it.
                    found = _open_copy(path, size)
            if found is None:
                raise DataError(f"{url} has {path.stat().st_size} bytes, its index was made of {size}")
        return found

    def _fetch(self, url: str, version: str, part: Path) -> None:
        try:
            with _told(url, "read"):
                files, path = _filesystem(url)
                with files.open(path, "rb") as remote:
                    size = _known(remote.size, url)
                    self._reserve(url, part, size)
                    with part.open("r+b") as file:
                        _copy(remote, file, size, url)
            # Asked behind the last byte, so that a file that is replaced while it is read is noticed, too.
            if remote_version(url) != version:
                raise DataError(f"{url} was replaced by another version since it was opened; start again")
        except BaseException:
            with self._changing():
                part.unlink(missing_ok=True)
            raise

    def _reserve(self, url: str, part: Path, size: int) -> None:
        """Makes room, and takes it with a file of that size in which nothing is written yet."""
        if size > self.max_bytes:
            raise DataError(f"{url} has {size} bytes, more than the {self.max_bytes} that {self.folder} may hold")
        while True:
            with self._changing():
                part.unlink(missing_ok=True)
                if self._make_room(size):
                    with part.open("wb") as file:
                        file.truncate(size)
                    return
            time.sleep(_PATIENCE)

    def _make_room(self, size: int) -> bool:
        """Evicts files until `size` more bytes fit; False where all that is left is on its way to other processes."""
        entries = [(entry, entry.stat()) for entry in os.scandir(self.folder) if entry.is_file(follow_symlinks=False)]
        total = sum(stat.st_size for _, stat in entries)
        for entry, stat in sorted(entries, key=lambda found: found[1].st_mtime_ns):
            if total + size <= self.max_bytes:
                break
            if stat.st_size and self._evict(Path(entry.path)):
                total -= stat.st_size
        return total + size <= self.max_bytes

    def _evict(self, path: Path) -> bool:
        """Removes a file, unless it is on its way."""
        if path.suffix != ".part":
            path.unlink(missing_ok=True)
            return True
        # A part that no process is fetching was left by one that was killed.
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _changing(self) -> FileLock:
        """Held by the one process that changes which files there are."""
        return FileLock(self.folder / "lock")


CACHE_GIGABYTES = 50.0
"""Disk that copies of remote shards may take here."""


def shard_cache() -> ShardCache:
    """Where copies of remote shards are kept."""
    return default_cache(CACHE_GIGABYTES)


def default_cache(gigabytes: float) -> "ShardCache":
    """The cache that all commands of this user share, with at most so many gigabytes (10^9 bytes) in it."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return ShardCache(Path(caches) / "fvl_lightning" / "shards", int(gigabytes * 1e9))


def _open_copy(path: Path, size: int | None) -> int | None:
    """A descriptor of the file, which now is the one used last; None where there is none of that size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if size is not None and os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    with suppress(OSError):  # a cache that others filled may be read-only
        os.utime(descriptor)
    return descriptor


def _copy(remote: IO[bytes], file: IO[bytes], size: int, url: str) -> None:
    copied = 0
    while block := remote.read(_COPIED_AT_ONCE):
        copied += len(block)
        if copied > size:
            break
        file.write(block)
    if copied != size:
        raise DataError(f"{url} was announced with {size} bytes and came with another number of them")
