"""What a file of text is before its rows are read: its encoding, and whether it is text at all."""

import re
from pathlib import Path

from datamodules.sources.files import open_file
from fvl_lightning.core.errors import DataError

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks; that of UTF-32 begins like that of UTF-16."""

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


def text_encoding(path: Path) -> str:
    """The codec of a file of text: utf-8-sig unless its first bytes say UTF-16 or UTF-32.

    Raises:
        DataError: a file that can't be read, or is compressed or of a binary format.
    """
    with open_file(path) as file:
        head = file.read(_HEAD)
    for pattern, words in _OTHER_FORMATS:
        if pattern.match(head):
            raise DataError(f"{path} is no text: it is {words}")
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # Without a mark: what people write begins with ASCII, which has a zero byte in every pair.
    zeros = [not byte for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    if zeros == [True, False, True, False]:
        return "utf-16-be"
    return "utf-8-sig"
