"""Random access to the samples of one split, spread over WebDataset shards."""

import hashlib
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from datamodules.images.decoding import decode_image
from datamodules.storage.content_hash import content_hash
from datamodules.storage.index import ShardIndex, index_name, mismatch
from datamodules.storage.sample import Decode, RawSample, SampleError, Samples
from datamodules.storage.shard_cache import ShardCache
from datamodules.storage.shard_files import ShardFiles, open_indexes
from datamodules.storage.shard_paths import split_shards
from datamodules.storage.tar_grouping import TEXTS, Problem, readable
from datamodules.storage.tar_headers import HEADER, is_extended_header, is_header
from fvl_lightning.core.errors import DataError

log = logging.getLogger(__name__)

_GAP = 64 * 1024  # bytes between the members of a sample that are read over rather than sought over
_EXTENSION = 4096  # bytes before a header in which the name of an extension is looked for
_TEXTS = tuple(f".{suffix}".encode() for suffix in TEXTS)


class SampleStore(Samples):
    """The samples of some shards, numbered through all of them; content that cannot be used is left out.

    Shards without an index are indexed on first use. Each process opens a file when it first reads it, and reads at
    given offsets only, so a store may be forked, pickled and shared by threads.

    Attributes:
        shards: the tars, as paths or URLs.
        problems: the refused content by reason, with the first examples; each damaged shard is also logged.
        ignored: the number of members that are not read, by suffix.

    Raises:
        DataError: no shard has a sample, an index does not match its tar, or a file cannot be read.
    """

    def __init__(
        self,
        shards: Sequence[str],
        split: str,
        cache: ShardCache | None = None,
        decode: Decode = decode_image,
    ) -> None:
        assert shards
        self.shards, self.split, self.decode = list(shards), split, decode
        self._indexes, versions = open_indexes(self.shards, cache)
        self._files = ShardFiles(self.shards, self.bytes_per_shard, versions, cache)
        self._starts = list(accumulate(map(len, self._indexes), initial=0))
        self._suffixes = [[f".{suffix}".encode() for suffix in index.suffixes] for index in self._indexes]
        self._content: str | None = None
        self.problems: dict[str, Problem] = {}
        self.ignored: Counter[str] = Counter()
        for shard, index in zip(self.shards, self._indexes, strict=True):
            self._count(shard, index)
        if len(self) == 0:
            raise self._nothing()

    @classmethod
    def open(
        cls, root: str | Path, split: str, cache: ShardCache | None = None, decode: Decode = decode_image
    ) -> "SampleStore":
        """Returns the store of `<root>/<split>-*.tar`, see split_shards."""
        return cls(split_shards(str(root), split), split, cache, decode)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def samples_per_shard(self) -> list[int]:
        """The number of samples of each shard."""
        return [len(index) for index in self._indexes]

    @property
    def bytes_per_shard(self) -> list[int]:
        """The size of each shard in bytes."""
        return [index.tar_bytes for index in self._indexes]

    @property
    def keys(self) -> list[str]:
        """The key of every sample, in order."""
        return [index.key(row) for index in self._indexes for row in range(len(index))]

    def key(self, i: int) -> str:
        """Returns the key of sample i."""
        shard, row = self._locate(i)
        return self._indexes[shard].key(row)

    def shard(self, i: int) -> str:
        """Returns the shard of sample i, as a path or URL."""
        return self.shards[self._locate(i)[0]]

    def name(self, i: int) -> str:
        """Returns key and shard of sample i, for messages."""
        return f"sample '{self.key(i)}' in {self.shard(i)}"

    def read(self, i: int) -> RawSample:
        """Returns sample i as its tar holds it, not decoded; errors as of `images`, except those of decoding."""
        members = self._members(i)
        record = text = None
        images = []
        for suffix, content in zip(members.suffixes, self._contents(i, members), strict=True):
            if suffix == b".json":
                record = bytes(content)
            elif suffix == b".txt":
                text = bytes(content)
            else:
                images.append(content)
        return RawSample(readable(members.key), record, text, images)

    def text_member(self, i: int) -> tuple[str, bytes] | None:
        """As of Samples; errors as of `images`, except those of decoding."""
        members = self._members(i)
        if members.suffixes[0] not in _TEXTS:
            return None
        return members.suffixes[0][1:].decode(), bytes(self._contents(i, members.part(0, 1))[0])

    def image_count(self, i: int) -> int:
        """Returns the number of the sample's images; nothing is read."""
        shard, row = self._locate(i)
        index, suffixes = self._indexes[shard], self._suffixes[shard]
        first, last = index.members(row)
        return sum(suffixes[code] not in _TEXTS for code in index.suffix_codes[first:last].tolist())

    def encoded_images(self, i: int) -> list[tuple[str, bytes]]:
        """Returns (suffix, encoded image) of the sample's images in order; errors as of `read`."""
        members = self._members(i)
        images = members.part(sum(suffix in _TEXTS for suffix in members.suffixes), len(members.suffixes))
        names = (suffix[1:].decode() for suffix in images.suffixes)
        return list(zip(names, map(bytes, self._contents(i, images)), strict=True))

    def manifest_hash(self) -> str:
        """Returns the sha256 of the shards' names, sizes and indexes, which names this data in lineages and caches."""
        digest = hashlib.sha256()
        for shard, index in zip(self.shards, self._indexes, strict=True):
            digest.update(f"{Path(shard).name}\0{index.tar_bytes}\0{index.suffixes}\0".encode() + index.key_bytes)
            for array in (index.key_ends, index.member_ends, index.suffix_codes, index.offsets, index.sizes):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def content_hash(self) -> str:
        """As manifest_hash, but with the shards' bytes (see content_hash.py); computed once."""
        if self._content is None:
            content = content_hash(self.shards, self.bytes_per_shard)
            self._content = hashlib.sha256(f"{self.manifest_hash()} {content}".encode()).hexdigest()
        return self._content

    def error(self, i: int, reason: str, detail: str = "") -> SampleError:
        """Returns the error for sample i, naming its shard and key."""
        shard, row = self._locate(i)
        return SampleError(self.shards[shard], self._indexes[shard].key(row), reason, detail)

    def _locate(self, i: int) -> tuple[int, int]:
        """Returns the number of sample i's shard, and its number in the shard."""
        assert 0 <= i < self._starts[-1], f"sample {i} of {len(self)}"
        shard = bisect_right(self._starts, i) - 1
        return shard, i - self._starts[shard]

    def _members(self, i: int) -> "_Members":
        shard, row = self._locate(i)
        index, suffixes = self._indexes[shard], self._suffixes[shard]
        first, last = index.members(row)
        return _Members(
            shard,
            index.raw_key(row),
            [suffixes[code] for code in index.suffix_codes[first:last].tolist()],
            index.offsets[first:last].tolist(),
            index.sizes[first:last].tolist(),
        )

    def _contents(self, i: int, members: "_Members") -> list[memoryview]:
        """Returns the members' contents, read at once; checks by their headers that the tar still fits its index."""
        shard, key, suffixes, offsets, sizes = members
        if not offsets:
            return []
        start = min(offsets) - HEADER
        length = max(map(int.__add__, offsets, sizes)) - start
        if length > sum(sizes) + len(sizes) * HEADER + _GAP:
            return [self._contents(i, members.part(number, number + 1))[0] for number in range(len(sizes))]
        block = self._files.read(shard, start, length)
        if len(block) != length:
            raise self.error(i, "cut short", f"{len(block)} of {length} bytes are there")
        contents, view = [], memoryview(block)
        for suffix, offset, size in zip(suffixes, offsets, sizes, strict=True):
            begin, name = offset - start, key + suffix
            if not (is_header(block, begin - HEADER, name, size) or self._is_extended(shard, offset, name)):
                where = f"{readable(name)} of {size} bytes at byte {offset - HEADER}"
                raise mismatch(index_name(self.shards[shard]), f"no member {where}")
            contents.append(view[begin : begin + size])
        return contents

    def _is_extended(self, shard: int, offset: int, name: bytes) -> bool:
        """Returns whether a member at `offset` has its name from an extension of its header."""
        start = max(0, offset - HEADER - _EXTENSION)
        before = self._files.read(shard, start, offset - start)
        return is_extended_header(before[:-HEADER], before[-HEADER:], name)

    def _count(self, shard: str, index: ShardIndex) -> None:
        """Adds the problems of a shard, and logs them."""
        self.ignored.update(index.ignored)
        for reason, found in index.problems.items():
            examples = tuple(f"{shard}: {name}" for name in found.examples) or (shard,)
            self.problems[reason] = self.problems.get(reason, Problem()).plus(found.count, examples)
        if index.problems:
            log.warning("shard %s: %s", shard, _in_words(index.problems))

    def _nothing(self) -> DataError:
        first, several = self.shards[0], len(self.shards) > 1
        which = f"none of {len(self.shards)} shards, {first} first, holds" if several else f"shard {first} holds no"
        why = f": {_in_words(self.problems)}" if self.problems else " (members named <key>.json, <key>.png, <key>.jpg)"
        return DataError(f"{which} samples{why}")


class _Members(NamedTuple):
    """Some members of a sample: its shard's number, its key, and the suffix (with the dot) and place of each member."""

    shard: int
    key: bytes
    suffixes: list[bytes]
    offsets: list[int]
    sizes: list[int]

    def part(self, begin: int, end: int) -> "_Members":
        """Returns the members from `begin` to before `end`."""
        return _Members(self.shard, self.key, self.suffixes[begin:end], self.offsets[begin:end], self.sizes[begin:end])


def _in_words(problems: Mapping[str, Problem]) -> str:
    """Returns a text such as: 2 x unsafe name (../a.png), 1 x cut short."""
    phrases = (
        f"{found.count} x {reason}{f' ({found.examples[0]})' if found.examples else ''}"
        for reason, found in problems.items()
    )
    return ", ".join(phrases)
