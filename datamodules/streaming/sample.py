"""One sample of a stream, read like one of an indexed store."""

from collections.abc import Mapping
from dataclasses import dataclass

from datamodules.storage.sample import Decode, SampleError, Samples
from datamodules.storage.tar_grouping import TEXTS
from datamodules.streaming.shard_order import ShardVisit


class StreamedSample(Samples):
    """A sample held in memory, as number 0.

    Args:
        shard: the path or URL of its tar.
        members: suffix in lower case -> content; None for a member that is larger than allowed.
    """

    def __init__(self, shard: str, key: str, members: Mapping[str, bytes | None], decode: Decode) -> None:
        self.shard, self.decode = shard, decode
        self._key, self._members = key, members
        self._images = sorted((suffix for suffix in members if suffix not in TEXTS), key=_image_number)

    def check(self) -> None:
        """SampleError where a member is larger than allowed."""
        for suffix, content in self._members.items():
            if content is None:
                raise self.error(0, "too large", suffix)

    def key(self, i: int) -> str:
        """The key, up to the first dot of its members' names."""
        return self._key

    def error(self, i: int, reason: str, detail: str = "") -> SampleError:
        """As of Samples."""
        return SampleError(self.shard, self._key, reason, detail)

    def text_member(self, i: int) -> tuple[str, bytes] | None:
        """As of Samples."""
        found = next((suffix for suffix in TEXTS if suffix in self._members), None)
        return None if found is None else (found, self._members[found] or b"")

    def image_count(self, i: int) -> int:
        """As of Samples."""
        return len(self._images)

    def encoded_images(self, i: int) -> list[tuple[str, bytes]]:
        """As of Samples."""
        return [(suffix, self._members[suffix] or b"") for suffix in self._images]


@dataclass(frozen=True)
class Drawn:
    """One sample of a stream, or the error for what stands in its place, with the visit of its shard."""

    visit: ShardVisit
    sample: StreamedSample | SampleError


def _image_number(suffix: str) -> int:
    """The place of an image in its sample: `1.jpg` is behind `jpg` and `0.jpg`."""
    return int(suffix.rpartition(".")[0] or 0)
