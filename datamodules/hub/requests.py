"""Requests to the Hugging Face hub: patient ones, ranges of a file, and errors in one sentence.

The hub's address (HF_ENDPOINT) and the token (HF_TOKEN, or what `hf auth login` keeps) are huggingface_hub's. A token
goes to that address only, and neither a message nor a file contains it.
"""

import importlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from datamodules.hub.address import HubFile
from fvl_lightning.core.errors import DataError, first_line

PUBLIC_HUB = "https://huggingface.co"
SECONDS = 30.0
"""Time in which the hub must begin to answer, or to send more."""
TRIES = 6
"""Requests in a row that may fail without a byte; a connection that breaks later starts the count again."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further request."""
LONGEST_PAUSE = 60.0
"""The longest Retry-After of a server that is followed."""
TAIL_BYTES = 2**20
"""The end of a Parquet file, which is read first, and again for every row group."""
MAX_READ_BYTES = 2**30
"""Limit of one read; a Parquet file that asks for more is damaged."""

_OFFLINE = "OfflineModeIsEnabled"
_PACKAGES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")
"""huggingface_hub and its HTTP client, whose classes have no common base."""

Result = TypeVar("Result")


class CutShortError(OSError):
    """A server has sent less than was asked for."""


def endpoint() -> str:
    """Returns the hub's address."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or PUBLIC_HUB


def patiently(request: Callable[[], Result]) -> Result:
    """Returns the result of a request, repeated while the connection breaks or the server is busy."""
    for failed in range(TRIES):
        try:
            return request()
        except Exception as error:
            if failed == TRIES - 1 or not _may_pass(error):
                raise
            _pause(error, failed)
    raise AssertionError("the last try returns or raises")


@contextmanager
def explain_hub_errors(what: object, dataset: str, revision: str | None) -> Iterator[None]:
    """Turns every error of the hub into one sentence.

    Args:
        what: what is read, for the beginning of the sentence.
        dataset: owner/name.
        revision: the revision that is asked for; None for the newest.

    Raises:
        DataError: the hub cannot be reached, or refuses.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_the_hub(error):
            raise
        raise DataError(f"{what} cannot be read: {_reason(error, dataset, revision)}") from None


def read_range(file: HubFile, start: int, stop: int) -> bytes:
    """Returns the bytes from `start` up to `stop` of a file; after a broken connection it asks for the rest only.

    Raises:
        DataError: the hub cannot be reached, refuses, or does not send ranges.
    """
    content = bytearray()
    with explain_hub_errors(file, file.dataset, file.commit):
        failed = 0
        while len(content) < stop - start:
            had = len(content)
            try:
                _receive(file, start, stop, content)
            except Exception as error:
                failed = 0 if len(content) > had else failed + 1
                if failed == TRIES or not _may_pass(error):
                    raise
                _pause(error, max(0, failed - 1))
    return bytes(content)


def size_of(file: HubFile) -> int:
    """Returns the size of a file in bytes, as it is listed or as the server states it; DataError as read_range."""
    if file.size is not None:
        return file.size
    with explain_hub_errors(file, file.dataset, file.commit):

        def ask() -> int:
            with _requested(file, "bytes=0-0") as response:
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                length = response.headers.get("Content-Length", "") if response.status_code == 200 else total
                return int(length) if length.isdecimal() else -1

        size = patiently(ask)
    if size < 0:
        raise DataError(f"{file} cannot be read: {endpoint()} does not say how long it is")
    return size


class HubReader(io.RawIOBase):
    """A file of the hub, read by ranges; `error` is the reason why a read has failed, which pyarrow may replace."""

    def __init__(self, file: HubFile) -> None:
        super().__init__()
        self._file, self._size, self._position = file, size_of(file), 0
        self.error: DataError | None = None

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Returns the bytes from the position on.

        Raises:
            DataError: as read_range.
            OSError: more than MAX_READ_BYTES are asked for.
        """
        left = max(0, self._size - self._position)
        count = left if size is None or size < 0 else min(size, left)
        if count > MAX_READ_BYTES:
            raise OSError(f"{count:,} bytes at once are asked for, at most {MAX_READ_BYTES:,} are read")
        start, stop = self._position, self._position + count
        self._position = stop
        tail = max(0, self._size - TAIL_BYTES)
        try:
            if start >= tail:
                return _tail(self._file, tail, self._size)[start - tail : stop - tail]
            return read_range(self._file, start, stop)
        except DataError as error:
            self.error = error
            raise

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer from the position on; returns the number of bytes."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


@lru_cache(maxsize=8)
def _tail(file: HubFile, start: int, stop: int) -> bytes:
    return read_range(file, start, stop)


@contextmanager
def _requested(file: HubFile, ranged: str) -> Iterator[Any]:
    """Yields the server's answer to a request for a range of a file; the errors of huggingface_hub for a refusal."""
    hub = importlib.import_module("huggingface_hub")
    utils = importlib.import_module("huggingface_hub.utils")
    url = hub.hf_hub_url(file.dataset, file.path, repo_type="dataset", revision=file.commit, endpoint=endpoint())
    headers = {**utils.build_hf_headers(), "Range": ranged, "Accept-Encoding": "identity"}
    with utils.get_session().stream("GET", url, headers=headers, timeout=SECONDS) as response:
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        yield response


def _receive(file: HubFile, start: int, stop: int, content: bytearray) -> None:
    """Appends to `content` what is left of the bytes from `start` up to `stop`, as far as it arrives."""
    first = start + len(content)
    with _requested(file, f"bytes={first}-{stop - 1}") as response:
        found = response.headers.get("Content-Range", "")
        if response.status_code != 206 or not found.startswith(f"bytes {first}-"):
            raise DataError(f"{file} cannot be read: {endpoint()} does not send ranges of a file")
        for block in response.iter_raw():
            content += block[: stop - start - len(content)]
            if len(content) == stop - start:
                return
    raise CutShortError(f"{len(content):,} of {stop - start:,} bytes came")


def _may_pass(error: Exception) -> bool:
    """Returns whether the same request may succeed later: the connection broke, or the server is busy."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return _is_of_the_hub(error) and type(error).__name__ not in (_OFFLINE, "LocalProtocolError", "UnsupportedProtocol")


def _pause(error: Exception, failed: int) -> None:
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    pause = PAUSES[min(failed, len(PAUSES) - 1)]
    time.sleep(min(LONGEST_PAUSE, max(pause, float(asked))) if asked.isdecimal() else pause)


def _status(error: Exception) -> int | None:
    """Returns the status that a server has answered with; None where there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_of_the_hub(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _PACKAGES


def _reason(error: Exception, dataset: str, revision: str | None) -> str:
    kind, status, hub = type(error).__name__, _status(error), endpoint()
    authorized = importlib.import_module("huggingface_hub").get_token() is not None
    access = "the token of HF_TOKEN gives no access" if authorized else "export HF_TOKEN, if you may read it"
    if kind == _OFFLINE:
        return "HF_HUB_OFFLINE is set, which forbids to ask the hub"
    if kind == "GatedRepoError":
        return f"{dataset} is gated; accept its conditions on {hub}/datasets/{dataset} ({access})"
    if kind == "RevisionNotFoundError":
        return f"{dataset} has no revision {revision}, or has it no longer"
    if kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return f"the hub has no such file at {revision}"
    if kind == "RepositoryNotFoundError" or status in (401, 403):
        return f"there is no dataset {dataset} on {hub}, or it is private or gated ({access})"
    if status == 404:
        return f"there is no dataset {dataset} on {hub}" + (f", or no revision {revision} of it" if revision else "")
    if status is not None:
        return f"{hub} answered with status {status}"
    return f"{hub} cannot be reached ({kind}: {first_line(error)})"
