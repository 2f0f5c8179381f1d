"""Random access to the samples of one split, spread over WebDataset shards."""

import hashlib
import json
import os
import re
from bisect import bisect_right
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.index import HEADER, mismatch, open_index
from fvl_lightning.core.errors import DataError, nearest

MAX_PIXELS = 64 * 1024 * 1024
"""An image whose header promises more than this is refused before it is decoded."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_SHARD = re.compile(r"(.+)-\d+\.tar")


class SampleError(DataError):
    """A sample that can't be used; `reason` is a short category to count by."""

    def __init__(self, shard: Path, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"sample '{key}' in {shard}: {reason}{f' ({detail})' if detail else ''}")
        self.shard, self.key, self.reason, self.detail = shard, key, reason, detail

    def __reduce__(self) -> tuple[type["SampleError"], tuple[Path, str, str, str]]:
        return SampleError, (self.shard, self.key, self.reason, self.detail)


class SampleStore:
    """The samples of `<root>/<split>-*.tar`, numbered through all shards.

    Files are opened per read (os.pread), so a store may be forked or pickled into workers.

    Raises:
        DataError: no folder, no shard of that split, no samples, or an index that does not match its tar.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.shards = _find_shards(self.root, split)
        self._indexes = [open_index(tar) for tar in self.shards]
        self._ends = list(accumulate(len(index) for index in self._indexes))
        for tar, index in zip(self.shards, self._indexes, strict=True):
            if len(index) == 0:
                raise DataError(f"shard {tar} holds no samples (members named <key>.json, <key>.png, <key>.jpg ...)")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def keys(self) -> list[str]:
        """The key of every sample, in order."""
        return [str(key) for index in self._indexes for key in index.keys]

    def key(self, i: int) -> str:
        """The key of sample i."""
        shard, row = self._locate(i)
        return str(self._indexes[shard].keys[row])

    def record(self, i: int) -> dict[str, Any]:
        """The sample's JSON; for a sample with only a text member, {"caption": that text}.

        Raises:
            SampleError: no such member, or not a JSON object.
        """
        members = self._members(i)
        if "json" in members:
            try:
                record = json.loads(self._read(i, "json"))
            except ValueError as error:
                raise self.error(i, "bad JSON", str(error)) from None
            if not isinstance(record, dict):
                raise self.error(i, "bad JSON", f"expected an object, found {type(record).__name__}")
            return record
        if "txt" in members:
            return {"caption": self._read(i, "txt").decode("utf-8", errors="replace").strip()}
        raise self.error(i, "no JSON")

    def image_count(self, i: int) -> int:
        """How many images the sample has; nothing is decoded."""
        return len(self._image_suffixes(i))

    def images(self, i: int) -> list[NDArray[np.uint8]]:
        """The sample's images in order, each [height, width, 3] RGB.

        Raises:
            SampleError: an image that can't be decoded, or of more than MAX_PIXELS.
        """
        return [self._decode(i, suffix) for suffix in self._image_suffixes(i)]

    def manifest_hash(self) -> str:
        """sha256 over the shards' names, sizes and indexes: names this data in lineages and caches."""
        digest = hashlib.sha256()
        for tar, index in zip(self.shards, self._indexes, strict=True):
            digest.update(f"{tar.name}\0{tar.stat().st_size}\0".encode())
            for array in (index.keys, index.first_member, index.suffixes, index.offsets, index.sizes):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def error(self, i: int, reason: str, detail: str = "") -> SampleError:
        """The error for sample i, naming its shard and key."""
        shard, row = self._locate(i)
        return SampleError(self.shards[shard], str(self._indexes[shard].keys[row]), reason, detail)

    def _locate(self, i: int) -> tuple[int, int]:
        assert 0 <= i < len(self), f"sample {i} of {len(self)}"
        shard = bisect_right(self._ends, i)
        return shard, i - (self._ends[shard - 1] if shard else 0)

    def _members(self, i: int) -> dict[str, int]:
        """Suffix -> member number within the shard's index."""
        shard, row = self._locate(i)
        index = self._indexes[shard]
        return {str(index.suffixes[j]): j for j in range(index.first_member[row], index.first_member[row + 1])}

    def _image_suffixes(self, i: int) -> list[str]:
        suffixes = [suffix for suffix in self._members(i) if suffix not in ("json", "txt")]
        return sorted(suffixes, key=lambda suffix: int(suffix.split(".")[0]) if "." in suffix else -1)

    def _read(self, i: int, suffix: str) -> bytes:
        """A member's content, after a look at its header: is this still the tar the index was made of?"""
        shard, row = self._locate(i)
        index, tar = self._indexes[shard], self.shards[shard]
        member = self._members(i)[suffix]
        offset, size = int(index.offsets[member]), int(index.sizes[member])
        try:
            descriptor = os.open(tar, os.O_RDONLY)
            try:
                block = os.pread(descriptor, HEADER + size, offset - HEADER)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"shard {tar} can't be read: {error.strerror}") from None
        name = f"{index.keys[row]}.{suffix}"
        if not _names(block[:HEADER], name):
            raise mismatch(tar, f"no member {name} at byte {offset - HEADER}")
        if len(block) != HEADER + size:
            raise self.error(i, "cut short", f"{name} has {len(block) - HEADER} of {size} bytes")
        return block[HEADER:]

    def _decode(self, i: int, suffix: str) -> NDArray[np.uint8]:
        content = self._read(i, suffix)
        try:
            return decode_image(BytesIO(content))
        except DataError as error:
            raise self.error(i, "broken image", f"{suffix}: {error}") from None


def decode_image(source: Path | BytesIO) -> NDArray[np.uint8]:
    """A PNG, JPEG or WebP as [height, width, 3] RGB.

    Raises:
        DataError: no such file, not one of those formats, broken, or of more than MAX_PIXELS by its header.
    """
    name = f"{source}: " if isinstance(source, Path) else ""
    try:
        with Image.open(source, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{name}image of {width} x {height} pixels, at most {MAX_PIXELS} are read")
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no image {source}") from None
    except Exception as error:  # whatever a decoder raises on broken bytes, the image is broken
        raise DataError(f"{name}not a readable PNG, JPEG or WebP ({_one_line(error)})") from None


def _find_shards(root: Path, split: str) -> list[Path]:
    if not root.is_dir():
        siblings = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
        raise DataError(f"no folder {root} with shards{_near(root.name, siblings)}")
    matches = [(path, match[1]) for path in sorted(root.iterdir()) if (match := _SHARD.fullmatch(path.name))]
    shards = [path for path, name in matches if name == split]
    if not shards:
        splits = sorted({name for _, name in matches})
        found = f"there are the splits {', '.join(splits)}" if splits else "there are no shards at all"
        raise DataError(f"no shard {split}-<number>.tar in {root}: {found}{_near(split, splits)}")
    return shards


def _near(value: str, allowed: list[str]) -> str:
    close = nearest(value, allowed)
    return f"; did you mean '{close}'?" if close else ""


def _names(header: bytes, name: str) -> bool:
    """Whether a tar header is that of the member `name`, compared as far as the header's fields reach."""
    stored = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    if prefix:
        stored = prefix + b"/" + stored
    wanted = name.encode("utf-8", errors="surrogateescape")
    # The suffix is compared without case, since the index holds it in lower case; a longer name is cut at 100 bytes.
    return stored.lower() == wanted.lower() or (len(stored) >= 100 and wanted.lower().startswith(stored.lower()))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
