"""The manifest of a build of shards, and the progress of a build that is running."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from datamodules.building.source_state import State, read_state
from datamodules.storage.writer import Shard
from fvl_lightning.core.errors import DataError

MANIFEST_NAME = re.compile(r"manifest(-part\d+of\d+)?\.json")
"""Names of manifests: one per build, or one per part of it."""

FORMAT = 2
"""Version of the format; it rises whenever the same settings would give other shards."""

_KINDS_NAMED = 12

REPORT_SECONDS = 0.5
"""Smallest number of seconds between two reports of progress."""


@dataclass(frozen=True)
class Manifest:
    """The shards of each split in order, the number of refused rows per reason, and what was ignored.

    Args:
        settings: the resolved recipe without the fields that the shards do not depend on.
        sources: the state of the source's files when the build began; empty if it is not known.
        already_complete: the build had been finished before, so nothing was done; not part of the file.
    """

    settings: Mapping[str, Any]
    shards: Mapping[str, Sequence[Shard]]
    refused: Mapping[str, int]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    sources: State = field(default_factory=dict)
    already_complete: bool = field(default=False, compare=False)

    @property
    def samples(self) -> int:
        """The number of samples of all splits."""
        return sum(shard.samples for shard in self.all_shards)

    @property
    def images(self) -> int:
        """The number of images of all splits."""
        return sum(shard.images for shard in self.all_shards)

    @property
    def all_shards(self) -> list[Shard]:
        """The shards of all splits."""
        return [shard for shards in self.shards.values() for shard in shards]

    def to_json(self) -> str:
        """Returns the file's content; equal builds give equal text."""
        content = {
            "settings": self.settings,
            **({"sources": self.sources} if self.sources else {}),
            "splits": {
                split: {**_totals(shards), "shards": [asdict(shard) for shard in shards]}
                for split, shards in sorted(self.shards.items())
            },
            **_totals(self.all_shards),
            "refused": dict(sorted(self.refused.items())),
            "passed_over": dict(sorted(self.passed_over.items())),
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str, already_complete: bool = False) -> "Manifest":
        """Reads a file's content; DataError naming its `place` if it is not the manifest of a build."""
        try:
            content = json.loads(text)
            shards = {
                split: [Shard.read(shard) for shard in found["shards"]] for split, found in content["splits"].items()
            }
            refused, passed_over = _counts(content["refused"]), _counts(content.get("passed_over", {}))
            sources = read_state(content.get("sources", {}))
            return cls(dict(content["settings"]), shards, refused, passed_over, sources, already_complete)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{place} is not the manifest of a build of shards, or it is damaged") from None


@dataclass(frozen=True)
class BuildProgress:
    """Samples, images, refused rows and chunks of the whole build so far; seconds of this process.

    `chunks_in_all` is None if the source does not know it; the `earlier` ones were done before this process started.
    """

    samples: int = 0
    images: int = 0
    refused: int = 0
    chunks: int = 0
    chunks_in_all: int | None = None
    seconds: float = 0.0
    earlier_images: int = 0
    earlier_chunks: int = 0

    @property
    def images_per_second(self) -> float:
        """The rate of this process."""
        return (self.images - self.earlier_images) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds for the remaining chunks at the rate so far; None while no rate is known."""
        done = self.chunks - self.earlier_chunks
        if self.chunks_in_all is None or not done:
            return None
        return (self.chunks_in_all - self.chunks) * self.seconds / done


class Reporter:
    """Counts the work of one process on top of `start`, and reports it at most every REPORT_SECONDS."""

    def __init__(self, start: BuildProgress, report: Callable[[BuildProgress], None] | None) -> None:
        self._progress = replace(start, earlier_images=start.images, earlier_chunks=start.chunks)
        self._report = report
        self._begun = self._reported = time.monotonic()

    def add(self, samples: int = 0, images: int = 0, refused: int = 0, chunks: int = 0) -> None:
        """Adds to the counts, and reports if REPORT_SECONDS have passed."""
        was = self._progress
        self._progress = replace(
            was,
            samples=was.samples + samples,
            images=was.images + images,
            refused=was.refused + refused,
            chunks=was.chunks + chunks,
        )
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        """Reports now."""
        self._reported = time.monotonic()
        if self._report is not None:
            self._report(replace(self._progress, seconds=self._reported - self._begun))


def in_words(passed_over: Mapping[str, int]) -> str:
    """Returns the most frequent kinds of ignored content with their counts; empty if there are none."""
    most = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(most) - _KINDS_NAMED} more kinds" if len(most) > _KINDS_NAMED else ""
    return ", ".join(f"{count:,} {kind}" for kind, count in most[:_KINDS_NAMED]) + more


def _counts(fields: Mapping[str, Any]) -> dict[str, int]:
    """Returns the counts of a JSON object."""
    return {name: int(count) for name, count in fields.items()}


def _totals(shards: Sequence[Shard]) -> dict[str, int]:
    return {name: sum(vars(shard)[name] for shard in shards) for name in ("samples", "images", "bytes")}
