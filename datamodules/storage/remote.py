"""Files behind URLs, through fsspec: listed, read, written, and kept in a folder that never outgrows its limit.

Who may read what is settled where fsspec's own libraries look: the environment and their configuration files.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError, first_line, nearest, os_error_in_words

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


def open_to_stream(place: str) -> BinaryIO:
    """Opens a path or URL to be read once from front to back; a URL is read on without a copy on this machine.

    Raises:
        DataError: it cannot be opened.
    """
    if not is_remote(place):
        try:
            return open(place, "rb")
        except OSError as error:
            raise DataError(f"shard {place} cannot be read: {os_error_in_words(error)}") from None
    with _told(place, "read"):
        files, path = _filesystem(place)
        return cast(BinaryIO, files.open(path, "rb", cache_type="readahead"))


def put_file(local: Path, url: str) -> None:
    """Writes a file of this machine to a URL, where it appears whole or not at all; DataError where it can't be."""
    with _told(url, "written"):
        files, path = _filesystem(url)
        if protocol_of(url) == "file":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(path)) as beside:
                shutil.copyfile(local, beside)
        else:
            files.put_file(str(local), path)


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
