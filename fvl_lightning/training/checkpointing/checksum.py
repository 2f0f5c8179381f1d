"""A checksum over every byte of a checkpoint file, as the comment of its zip archive.

torch writes zip archives, with a checksum for each entry and none for the directory that names the entries. The comment
ends the archive, is ignored by every reader, and is written in the same file, so that no rename separates the two.
"""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

READ_AT_ONCE = 2**24
MARK = b"fvl crc32 "
COMMENT_BYTES = len(MARK) + 8
"""The mark and eight hexadecimal digits."""
LENGTH = struct.Struct("<H")
"""The length of the comment: the last field of an archive that has none."""
END_MARK, END_BYTES = b"PK\x05\x06", 22
"""The beginning and size of the last record of an archive without a comment."""

FOLDER_BIT = 0x10
"""The attribute of an entry that is a folder."""


class CountedFile:
    """A file that counts and sums up what is written to it, since torch's own checksums do not cover every byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size, self.checksum = 0, 0

    def write(self, data: bytes) -> int:
        """Writes all of `data`; returns its number of bytes."""
        self.size += memoryview(data).nbytes
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)

    def flush(self) -> None:
        """Flushes the file."""
        self._file.flush()


def write_counted(file: BinaryIO, content: Any) -> CountedFile:
    """Writes `content` as torch does; returns the number of bytes and their checksum."""
    counted = CountedFile(file)
    torch.save(content, counted)  # type: ignore[arg-type]  # it needs no more of a file than this
    return counted


def write_with_checksum(file: BinaryIO, content: Any) -> None:
    """Writes `content` as torch does, with a checksum over all of it as the comment of the archive."""
    counted = write_counted(file, content)
    file.seek(-LENGTH.size, os.SEEK_END)
    file.write(LENGTH.pack(COMMENT_BYTES) + MARK + b"%08x" % counted.checksum)


def is_whole_file(path: Path) -> bool:
    """Returns whether every byte of a checkpoint file is what was written.

    A file of an earlier version has no checksum over all of it: those of its entries must fit, and torch must be able
    to list what it would read.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - COMMENT_BYTES, 0))
            comment = file.read()
            if comment.startswith(MARK):
                checksum = _checksum_without_comment(file, size - COMMENT_BYTES)
                return checksum is not None and comment == MARK + b"%08x" % checksum
            file.seek(max(size - END_BYTES, 0))
            end = file.read()
        if not end.startswith(END_MARK) or not end.endswith(LENGTH.pack(0)):
            return False
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression, and reads as much as the directory says, past the end of an entry too.
            # For an entry that is marked as a folder it reads nothing, and returns memory as it was.
            if archive.testzip() or any(
                entry.file_size != entry.compress_size or entry.external_attr & FOLDER_BIT
                for entry in archive.infolist()
            ):
                return False
        read_file(path)
    except Exception:  # there is no list of what zipfile and torch raise for stray bytes
        return False
    return True


def read_file(path: Path) -> Any:
    """Reads one of torch's files, without running code of its; its tensors are mapped into main memory."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def checksum_of(file: BinaryIO, size: int) -> int:
    """Returns the checksum of the next `size` bytes; of fewer where the file ends before."""
    checksum = 0
    while size > 0 and (data := file.read(min(size, READ_AT_ONCE))):
        checksum = zlib.crc32(data, checksum)
        size -= len(data)
    return checksum


def _checksum_without_comment(file: BinaryIO, size: int) -> int | None:
    """Returns the checksum of an archive as it was before its comment; None where the comment's length is another."""
    file.seek(0)
    checksum = checksum_of(file, size - LENGTH.size)
    return zlib.crc32(LENGTH.pack(0), checksum) if file.read(LENGTH.size) == LENGTH.pack(COMMENT_BYTES) else None
