"""Writes samples to ordinary WebDataset tars, each with an index."""

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datamodules.storage.index import index_path, save_index, scan_tar
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError

_END_MARK = 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Length:
    """The length of an unfinished shard: samples, images, and bytes of the tar."""

    samples: int = 0
    images: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Shard:
    """A finished shard as manifests name it; `sha256` of the tar in hex."""

    name: str
    samples: int
    images: int
    bytes: int
    sha256: str

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Shard":
        """Returns the shard in the fields of a JSON object; TypeError where they have other names or types."""
        shard = cls(**fields)
        numbers = (shard.samples, shard.images, shard.bytes)
        if not all(type(number) is int for number in numbers) or not isinstance(shard.name, str):
            raise TypeError("a shard has a name, and its numbers are whole")
        return shard


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Returns a sample's JSON in UTF-8; equal records give equal bytes.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot express the record; UnicodeEncodeError for a lone surrogate.
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def image_names(extensions: Sequence[str]) -> list[str]:
    """Returns the suffixes of a sample's images: the extension of a single one, otherwise number and extension."""
    return list(extensions) if len(extensions) == 1 else [f"{i}.{name}" for i, name in enumerate(extensions)]


def tar_members(key: str, members: Mapping[str, bytes]) -> bytes:
    """Returns one sample (suffix -> content) as a stretch of tar, written by webdataset's TarWriter.

    Equal samples give equal bytes: owner, mode and time are fixed. Stretches are joined to a tar by OpenShard, which
    also writes the end mark.
    """
    from datamodules.storage.wds import TarWriter  # the library imports torch, which takes seconds

    assert "." not in key.rpartition("/")[2], f"a key ends at its first dot: {key}"
    file = BytesIO()
    # A whole number as the time: a fraction would give every member an extended header of 1 KiB.
    with TarWriter(file, encoder=False, mtime=0) as writer:
        writer.write({"__key__": key, **members})
        length = writer.tarstream.offset
    return file.getvalue()[:length]


def whole_size(length: int) -> int:
    """Returns the size of a finished tar with `length` bytes of samples."""
    return -(-(length + _END_MARK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


class OpenShard:
    """An unfinished tar at `path`: it grows by whole samples, and is hashed as it grows.

    With `start` it continues from an earlier length; later bytes are truncated.

    Raises:
        DataError: the file is shorter than `start`.
    """

    def __init__(self, path: Path, start: Length | None = None) -> None:
        self.path, self.length = path, start or Length()
        self._hash = hashlib.sha256()
        self._file = path.open("r+b" if self.length.bytes else "wb")
        left = self.length.bytes
        while left and (block := self._file.read(min(left, 1 << 20))):
            self._hash.update(block)
            left -= len(block)
        if left:
            self._file.close()
            raise DataError(f"{path} is {left} bytes shorter than it was, so the build cannot go on from it")
        self._file.seek(self.length.bytes)
        self._file.truncate()

    def append(self, members: bytes, images: int) -> None:
        """Appends one sample with that many images, as returned by `tar_members`."""
        self._write(members)
        was = self.length
        self.length = Length(was.samples + 1, was.images + images, was.bytes + len(members))

    def sync(self) -> None:
        """Writes all that was appended to the disk before it returns."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, name: str) -> Shard:
        """Writes the end mark and closes the tar, which is then complete and on the disk."""
        size = whole_size(self.length.bytes)
        self._write(bytes(size - self.length.bytes))
        self.sync()
        self._file.close()
        return Shard(name, self.length.samples, self.length.images, size, self._hash.hexdigest())

    def close(self) -> None:
        """Closes the file without an end mark."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)


class ShardWriter:
    """Writes `<folder>/<split>-000000.tar`, `-000001.tar` ... with their indexes; equal samples give equal bytes.

    A context manager. Each shard is written under a temporary name and renamed when it is complete; after an error the
    unfinished one is removed.
    """

    def __init__(self, folder: Path, split: str, samples_per_shard: int = 10_000) -> None:
        assert samples_per_shard > 0
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.split, self.samples_per_shard = folder, split, samples_per_shard
        self.shards: list[Shard] = []
        self._stack = ExitStack()
        self._open: OpenShard | None = None

    def write(self, key: str, record: Mapping[str, Any], images: Sequence[bytes] = (), extension: str = "png") -> None:
        """Appends one sample: its JSON and its images, already encoded as `extension` (png, jpg or webp)."""
        if self._open is None:
            tmp_path = self._stack.enter_context(atomic_write(self.folder / self._name()))
            self._open = OpenShard(tmp_path)
            self._stack.callback(self._open.close)
        names = image_names([extension] * len(images))
        members = {"json": encode_record(record), **dict(zip(names, images, strict=True))}
        self._open.append(tar_members(key, members), len(images))
        if self._open.length.samples == self.samples_per_shard:
            self._finish(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._open is not None:
            self._finish(self._open)
        self._stack.__exit__(kind, error, traceback)

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards):06d}.tar"

    def _finish(self, shard: OpenShard) -> None:
        """Publishes the index, then the tar."""
        tar = self.folder / self._name()
        self.shards.append(shard.finish(tar.name))
        save_index(scan_tar(shard.path), index_path(tar))
        self._open = None
        self._stack.close()
