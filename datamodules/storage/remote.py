"""Files behind URLs, through fsspec: listed, read, written, and kept in a folder that never outgrows its limit.

Who may read what is settled where fsspec's own libraries look: the environment and their configuration files.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from datamodules.storage.index import replacing
from fvl_lightning.core.errors import DataError, first_line, nearest

PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "https": "aiohttp",
    "http": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "file": "fsspec",
}
"""The protocols that are read and written, and the package each needs."""

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_COPIED_AT_ONCE = 8 * 2**20
_PATIENCE = 0.1  # seconds between two looks at whether another process has made room


def protocol_of(place: str) -> str | None:
    """The protocol of a URL in lower case; None for a path of this machine.

    Raises:
        DataError: a protocol other than those of PACKAGES: pipe: would run a program.
    """
    match = _PROTOCOL.match(place)
    if match is None:
        return None
    protocol = match[1].lower()
    if protocol not in PACKAGES or not place[match.end() :].startswith("//") or "::" in place:
        allowed = ", ".join(f"{name}://" for name in PACKAGES)
        close = nearest(protocol, [name for name in PACKAGES if name != protocol])
        hint = f"; did you mean '{close}://'?" if close and protocol not in PACKAGES else ""
        raise DataError(f"{place} can't be used: allowed are {allowed} and paths of this machine{hint}")
    return protocol


def is_remote(place: str) -> bool:
    """Whether a place is a URL (file:// is one, too); DataError for a protocol that is not allowed."""
    return protocol_of(place) is not None


def list_names(place: str) -> list[str]:
    """The names of the files directly under a URL, sorted; none where there is no such folder.

    Raises:
        DataError: a folder that can't be listed, as a plain web server's.
    """
    with _told(place, "listed"):
        files, path = _filesystem(place)
        try:
            found = files.ls(path.rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file")


def remote_size(url: str) -> int:
    """The bytes of the file at a URL; DataError where there is none."""
    with _told(url, "looked at"):
        files, path = _filesystem(url)
        return _known(files.info(path).get("size"), url)


_VERSIONS = ("etag", "md5hash", "md5", "generation", "versionid", "mtime", "lastmodified", "last_modified", "updated")
"""What filesystems say, under many spellings, of which version of a file is there; the first that is said counts."""


def remote_version(url: str) -> str:
    """Names the version of the file at a URL, by its size and what its server says of it; nothing of it is read.

    Raises:
        DataError: there is no such file, or that cannot be found out.
    """
    with _told(url, "looked at"):
        files, path = _filesystem(url)
        facts = {key.lower().replace("-", ""): value for key, value in files.info(path).items()}
    said = next((f"{key} {facts[key]}" for key in _VERSIONS if facts.get(key)), "")
    return f"{facts.get('size')} {said}"


def read_bytes(url: str) -> bytes:
    """The whole of the file at a URL; DataError where there is none or it can't be read."""
    with _told(url, "read"):
        files, path = _filesystem(url)
        return bytes(files.cat_file(path))


def read_if_there(url: str) -> bytes | None:
    """As read_bytes; None where there is no file, or none that we may read (some stores do not tell these apart)."""
    with _told(url, "read"):
        files, path = _filesystem(url)
        try:
            return bytes(files.cat_file(path))
        except (FileNotFoundError, PermissionError):
            return None


def put_file(local: Path, url: str) -> None:
    """Writes a file of this machine to a URL, where it appears whole or not at all; DataError where it can't be."""
    with _told(url, "written"):
        files, path = _filesystem(url)
        if protocol_of(url) == "file":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as beside:
                shutil.copyfile(local, beside)
        else:
            files.put_file(str(local), path)


def default_cache(gigabytes: float) -> "ShardCache":
    """The cache that all commands of this user share, with at most so many gigabytes (10^9 bytes) in it."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return ShardCache(Path(caches) / "fvl_lightning" / "shards", int(gigabytes * 1e9))


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
                    with replacing(path) as beside:
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
                    os.replace(part, path)
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


def _known(size: Any, url: str) -> int:
    if not isinstance(size, int):
        raise DataError(f"{url} can't be read: its server does not say how long it is")
    return size


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem for a URL (asked for each time, which is safe after a fork) and the path in it."""
    protocol = protocol_of(url)
    assert protocol is not None, f"{url} is no URL"
    try:
        files, path = import_module("fsspec.core").url_to_fs(url)
    except ImportError:
        raise DataError(f"{url}: {protocol}:// needs a package: pip install {PACKAGES[protocol]}") from None
    # Listings from before may be out of date, and sizes are taken from them.
    files.invalidate_cache()
    return files, path


@contextmanager
def _told(url: str, done: str) -> Iterator[None]:
    """Turns whatever goes wrong with a URL into one sentence."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        # fsspec raises this of a web server whatever went wrong, with what did as its cause.
        status = getattr(cause, "status", None)
        if protocol_of(url) in ("http", "https") and isinstance(cause, Exception) and status not in (404, 410):
            raise DataError(f"{url} can't be {done}: {first_line(cause)}") from None
        raise DataError(f"there is no {url}") from None
    except Exception as error:  # each protocol's library has errors of its own, from no common class
        raise DataError(f"{url} can't be {done}: {first_line(error)}") from None
