"""A sample as it is in its tar, and the error for one that cannot be used."""

from typing import NamedTuple

from fvl_lightning.core.errors import DataError


class SampleError(DataError):
    """A sample that can't be used; `reason` is a short category to count by."""

    def __init__(self, shard: str, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"sample '{key}' in {shard}: {reason}{f' ({detail})' if detail else ''}")
        self.shard, self.key, self.reason, self.detail = shard, key, reason, detail

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str, str, str]]:
        return SampleError, (self.shard, self.key, self.reason, self.detail)


class RawSample(NamedTuple):
    """A sample as it is in its tar: the JSON, the text and the encoded images in their order, not copied again."""

    key: str
    record: bytes | None
    text: bytes | None
    images: list[memoryview]


def spread(count: int, number: int) -> list[int]:
    """Returns the numbers of `number` samples out of `count`, spread evenly from 0 on; all where there are no more."""
    number = min(count, number)
    return [i * count // number for i in range(number)]
