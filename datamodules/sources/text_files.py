"""Detects the encoding of text files and reads their lines."""

import re
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Self

from datamodules.sources.row_files import MAX_ROW_BYTES, open_file
from fvl_lightning.core.errors import DataError

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks; UTF-32's come first, since they begin like UTF-16's."""

_OTHER_FORMATS = (
    (re.compile(rb"\x1f\x8b"), "compressed with gzip; unpack it first"),
    (re.compile(rb"BZh\d1AY&SY"), "compressed with bzip2; unpack it first"),
    (re.compile(rb"\xfd7zXZ\0"), "compressed with xz; unpack it first"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "compressed with zstd; unpack it first"),
    (re.compile(rb"PK\x03\x04|PK\x05\x06"), "a zip archive, as .zip and .xlsx files are; unpack or export it first"),
    (re.compile(rb"\xd0\xcf\x11\xe0"), "a spreadsheet of Excel; export it first"),
    (re.compile(rb"PAR1[\0-\x1f]"), "Parquet, which the source parquet reads"),
    (re.compile(rb"ARROW1\0\0"), "an Arrow file; write it as Parquet"),
)

_HEAD = 64


@dataclass(frozen=True)
class TextLine:
    """A line of text.

    Attributes:
        number: counted from 1.
        text: its text, at most MAX_ROW_BYTES characters.
        end: its line end.
        characters: its full length, line end included.
    """

    number: int
    text: str
    end: str
    characters: int


def text_encoding(path: Path) -> str:
    """Returns the codec of a text file: utf-8-sig, unless its first bytes indicate UTF-16 or UTF-32.

    Raises:
        DataError: the file cannot be read, is compressed, or has a binary format.
    """
    with open_file(path) as file:
        head = file.read(_HEAD)
    for pattern, description in _OTHER_FORMATS:
        if pattern.match(head):
            raise DataError(f"{path} is no text: it is {description}")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # Text without a mark usually begins with ASCII, which has a zero byte in every pair in UTF-16.
    zeros = [not byte for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    if zeros == [True, False, True, False]:
        return "utf-16-be"
    return "utf-8-sig"


class Lines:
    """The numbered lines of a table; reading can go back to an earlier place.

    All lines end like the first one, so that cells may contain other line ends. Invalid UTF-8 bytes become lone
    surrogates, so that only their own row is lost.

    Raises:
        DataError: the file cannot be read or is no text.
    """

    def __init__(self, path: Path) -> None:
        encoding = text_encoding(path)
        errors = "surrogateescape" if encoding == "utf-8-sig" else "surrogatepass"
        with TextIOWrapper(open_file(path), encoding, errors, newline="") as file:
            self._end = "\r" if _first_line(path, file).endswith("\r") else "\n"
        self._file = TextIOWrapper(open_file(path), encoding, errors, newline=self._end)
        self.number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def next(self) -> TextLine | None:
        """Returns the next line, cut to MAX_ROW_BYTES characters; None after the last."""
        text = self._file.readline(MAX_ROW_BYTES + 1)
        if not text:
            return None
        characters, rest = len(text), text
        while not rest.endswith(self._end) and (rest := self._file.readline(MAX_ROW_BYTES)):
            characters += len(rest)
        self.number += 1
        bare = text.removesuffix("\n").removesuffix("\r")
        return TextLine(self.number, bare, text[len(bare) :], characters)

    def place(self) -> tuple[int, int]:
        """Returns the place of the next line."""
        return self._file.tell(), self.number

    def go_back(self, place: tuple[int, int]) -> None:
        """Continues from an earlier place."""
        self._file.seek(place[0])
        self.number = place[1]


def _first_line(path: Path, file: TextIOWrapper) -> str:
    try:
        return file.readline(MAX_ROW_BYTES)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: its first line cannot be read as {error.encoding}: {error.reason}") from None
