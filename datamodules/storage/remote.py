"""Lists, reads and writes files behind URLs through fsspec.

fsspec's libraries find credentials in the environment and in their configuration files.
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
"""The supported protocols, and the package that each needs."""

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
COPY_BLOCK_BYTES = 8 * 2**20
POLL_SECONDS = 0.1  # seconds between two looks at whether another process has made room


def protocol_of(place: str) -> str | None:
    """Returns the protocol of a URL in lower case; None for a local path.

    Raises:
        DataError: the protocol is not in PACKAGES; `pipe:` would run a program.
    """
    match = _PROTOCOL.match(place)
    if match is None:
        return None
    protocol = match[1].lower()
    if protocol not in PACKAGES or not place[match.end() :].startswith("//") or "::" in place:
        allowed = ", ".join(f"{name}://" for name in PACKAGES)
        close = nearest(protocol, [name for name in PACKAGES if name != protocol])
        hint = f"; did you mean '{close}://'?" if close and protocol not in PACKAGES else ""
        raise DataError(f"{place} cannot be used: allowed: {allowed} and paths of this machine{hint}")
    return protocol


def is_remote(place: str) -> bool:
    """Returns whether a place is a URL (file:// is one too); DataError for a protocol that is not allowed."""
    return protocol_of(place) is not None


def list_names(place: str) -> list[str]:
    """Returns the names of the files directly under a URL, sorted; none if there is no such folder.

    Raises:
        DataError: the folder cannot be listed, such as that of a plain web server.
    """
    with explain_url_errors(place, "listed"):
        files, path = _filesystem(place)
        try:
            found = files.ls(path.rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file")


def remote_size(url: str) -> int:
    """Returns the size of the file at a URL in bytes; DataError if there is none."""
    with explain_url_errors(url, "looked at"):
        files, path = _filesystem(url)
        return _known(files.info(path).get("size"), url)


_VERSIONS = ("etag", "md5hash", "md5", "generation", "versionid", "mtime", "lastmodified", "last_modified", "updated")
"""Fields in which filesystems report the version of a file; the first one that is present counts."""


def remote_version(url: str) -> str:
    """Returns a name for the version of the file at a URL, from its size and its server's report; nothing is read.

    Raises:
        DataError: there is no such file, or its version cannot be determined.
    """
    with explain_url_errors(url, "looked at"):
        files, path = _filesystem(url)
        facts = {key.lower().replace("-", ""): value for key, value in files.info(path).items()}
    version = next((f"{key} {facts[key]}" for key in _VERSIONS if facts.get(key)), "")
    return f"{facts.get('size')} {version}"


def read_bytes(url: str) -> bytes:
    """Returns the content of the file at a URL; DataError if it cannot be read."""
    with explain_url_errors(url, "read"):
        files, path = _filesystem(url)
        return bytes(files.cat_file(path))


def read_if_there(url: str) -> bytes | None:
    """As read_bytes; None if there is no file or reading is not permitted (some stores do not distinguish them)."""
    with explain_url_errors(url, "read"):
        files, path = _filesystem(url)
        try:
            return bytes(files.cat_file(path))
        except (FileNotFoundError, PermissionError):
            return None


def open_to_stream(place: str) -> BinaryIO:
    """Opens a path or URL to be read once from front to back; no local copy of a URL is made.

    Raises:
        DataError: it cannot be opened.
    """
    if not is_remote(place):
        try:
            return open(place, "rb")
        except OSError as error:
            raise DataError(f"shard {place} cannot be read: {os_error_in_words(error)}") from None
    with explain_url_errors(place, "read"):
        files, path = _filesystem(place)
        return cast(BinaryIO, files.open(path, "rb", cache_type="readahead"))


def put_file(local: Path, url: str) -> None:
    """Writes a local file to a URL atomically; DataError if that fails."""
    with explain_url_errors(url, "written"):
        files, path = _filesystem(url)
        if protocol_of(url) == "file":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(path)) as tmp_path:
                shutil.copyfile(local, tmp_path)
        else:
            files.put_file(str(local), path)


def _known(size: Any, url: str) -> int:
    if not isinstance(size, int):
        raise DataError(f"{url} cannot be read: its server does not say how long it is")
    return size


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's filesystem for a URL, a new one each time, which is safe after a fork, and the path in it."""
    protocol = protocol_of(url)
    assert protocol is not None, f"{url} is no URL"
    try:
        files, path = import_module("fsspec.core").url_to_fs(url)
    except ImportError:
        raise DataError(f"{url}: {protocol}:// needs a package: pip install {PACKAGES[protocol]}") from None
    # Cached listings may be outdated, and sizes are taken from them.
    files.invalidate_cache()
    return files, path


@contextmanager
def explain_url_errors(url: str, done: str) -> Iterator[None]:
    """Turns every error of a URL into one sentence."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        # For a web server fsspec raises this for every error, with the real one as its cause.
        status = getattr(cause, "status", None)
        if protocol_of(url) in ("http", "https") and isinstance(cause, Exception) and status not in (404, 410):
            raise DataError(f"{url} cannot be {done}: {first_line(cause)}") from None
        raise DataError(f"there is no {url}") from None
    except Exception as error:  # the libraries' errors have no common base class
        raise DataError(f"{url} cannot be {done}: {first_line(error)}") from None
