"""The fields of a recipe for `fvl shards build`; the fields of a source stand with its class."""

import re
from dataclasses import dataclass, field
from typing import Any

from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.config.loading import slot


@dataclass
class BuildConfig:
    """One source of image-text data, and its shards."""

    source: Any = slot("source")
    output: PathText = "shards"
    """Folder or fsspec URL (s3://, gs://) of the shards, their indexes and manifests."""
    splits: dict[str, float] = number(default_factory=dict, above=0, at_most=1)
    """Fraction of the samples per split; without it all are train. The hash of a sample's image (of its text, if it has
    no image) decides its split, so that an image is never in two splits; of several, the smallest hash decides."""
    samples_per_shard: int = number(10_000, at_least=1)
    """Samples per shard; bytes_per_shard may end it earlier."""
    bytes_per_shard: int = number(2**30, at_least=1)
    """Largest size of a shard in bytes; a single larger sample has a shard of its own."""
    processes: int | None = number(None, at_least=1)
    """Processes that read and check; null for one per core. The shards do not depend on it."""
    part: str = "1/1"
    """i/n: build only the i-th of n parts of the source, so that n machines can share the work."""
    plugins: list[PathText] = field(default_factory=list)
    """Modules or .py files that register your own sources."""

    def __post_init__(self) -> None:
        self.splits = self.splits or {"train": 1.0}
        for split in self.splits:
            if not re.fullmatch("[A-Za-z0-9_]+", split):
                raise ValueError(f"splits: '{split}' must be of letters, digits and _, since files are named by it")
        if abs(sum(self.splits.values()) - 1) > 1e-9:
            raise ValueError(f"splits: the fractions must add up to 1, they make {sum(self.splits.values())}")
        first, slash, count = self.part.partition("/")
        if not (slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
            raise ValueError(f"part: '{self.part}' is not i/n with i from 1 to n, such as 1/4")
        self.part = f"{int(first)}/{int(count)}"
