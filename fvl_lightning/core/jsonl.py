"""JSON files: logs that grow by lines, and objects that are replaced as a whole and have a checksum.

A killed process may leave a log with a torn last line, which nobody reads.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.errors import DataError

logger = logging.getLogger(__name__)

CHECKSUM = "checksum"
"""The key of the checksum; files of earlier versions have none."""


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]], durable: bool = False) -> None:
    """Appends one line per row, all of them or none; a torn last line is cut off first.

    Args:
        path: created where there is none.
        durable: returns once the lines are on the disk, so that a power cut does not lose them.

    Raises:
        OSError: the file cannot be written; it keeps the lines that it had.
    """
    # Half of a surrogate pair, which JSON may hold and UTF-8 may not, is written as an escape.
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
    # Without a buffer, since a buffer that could not be written is written again at the end, behind the truncation.
    with path.open("a+b", buffering=0) as file:
        end = _end_of_lines(file)
        file.truncate(end)
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Iterates over the rows of all whole lines; there are none without a file.

    Raises:
        DataError: a line is not a JSON object.
    """
    return RowReader(path).rows()


def read_valid_rows(path: Path, valid: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Returns the rows that `valid` accepts; a warning counts the lines that are left out."""
    reader = RowReader(path, valid)
    rows = list(reader.rows())
    reader.say_skipped()
    return rows


class RowReader:
    """Reads a file that grows: every call goes on behind the rows of the one before.

    Args:
        path: the file.
        valid: returns whether a row is one of this file; those that are not, and lines that are no JSON object, are
            left out and counted in `skipped`. Without it, a line that is no JSON object is an error.
    """

    def __init__(self, path: Path, valid: Callable[[dict[str, Any]], bool] | None = None) -> None:
        self._path, self._valid = path, valid
        self._bytes = self._lines = 0
        self.skipped = 0
        """The lines that were left out so far."""

    def say_skipped(self) -> None:
        """Logs how many lines were left out; once for each number, since some logs are read often."""
        if self.skipped:
            _say_skipped(self._path, self.skipped)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows that were appended since; see read_rows."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._bytes += len(line)
                self._lines += 1
                row = _parsed(line)
                if self._valid is not None and not (row is not None and self._valid(row)):
                    self.skipped += 1
                elif row is None:
                    raise DataError(f"line {self._lines} of {self._path} is not a JSON object")
                else:
                    yield row


@lru_cache(maxsize=256)
def _say_skipped(path: Path, count: int) -> None:
    lines = "1 line is" if count == 1 else f"{count} lines are"
    logger.warning("%s: %s damaged and left out", path, lines)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _end_of_lines(file: BinaryIO) -> int:
    """Returns the bytes up to the end of the last whole line."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces `path` by a JSON file of `values` and their checksum.

    Raises:
        DataError: it cannot be written; what was there is kept.
    """
    plain = json.loads(json.dumps({key: value for key, value in values.items() if key != CHECKSUM}))
    write_text_atomically(path, json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=2))


def read_sealed(path: Path, editable: Mapping[str, Collection[str]] | None = None) -> dict[str, Any]:
    """Returns the values in a JSON file, without their checksum.

    Args:
        path: the file.
        editable: {key: its values}; a person may replace one of these values by another.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or not what was written.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    last = next(reversed(values), "")
    checksum = values.pop(CHECKSUM, None)
    # The key itself may be damaged, and the file would then seem to be of an earlier version.
    damaged_key = len(last) == len(CHECKSUM) and sum(map(str.__ne__, last, CHECKSUM)) == 1
    if damaged_key or (checksum is not None and checksum not in _checksums(values, editable or {})):
        raise ValueError("it was damaged or edited, its checksum is another")
    return values


def _checksums(values: Mapping[str, Any], editable: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yields the checksum of the values, and those with another value of each key that a person may edit."""
    yield _checksum(values)
    for key, allowed in editable.items():
        if values.get(key) in allowed:
            yield from (_checksum({**values, key: value}) for value in allowed)


def _checksum(plain: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"
