"""JSON Lines files that grow: a log that a killed process may leave with a torn last line, which nobody reads."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fvl_lightning.core.errors import DataError


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


class RowReader:
    """Reads a file that grows: every call goes on behind the rows of the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = self._lines = 0

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
                try:
                    row = json.loads(line.decode("utf-8"))
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise DataError(f"line {self._lines} of {self._path} is not a JSON object")
                yield row


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
