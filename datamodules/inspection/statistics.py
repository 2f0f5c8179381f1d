"""Statistics of a set of shards."""

import hashlib
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import Message, parts_of
from datamodules.inspection.check import chunks_of, content_of, image_header
from datamodules.inspection.parallel import map_in_processes
from datamodules.storage.remote import is_remote, remote_size
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import IGNORE_INDEX

MEASURES = {
    "images": "images per sample",
    "width": "image width",
    "height": "image height",
    "image_bytes": "bytes per image",
    "characters": "characters",
    "turns": "answers",
    "tokens": "text tokens",
    "supervised": "supervised tokens",
}
"""Each measure and its name in a table: sizes in pixels, and numbers per sample unless the name states otherwise.

The last two need a tokenizer and do not count image tokens.
"""

PERCENTILES = (0, 5, 50, 95, 100)

NO_SOURCE = "(none)"
"""The source of samples whose record has no text `source`."""


@dataclass
class Statistics:
    """Counts and measures of samples.

    Attributes:
        shards: number of shards.
        bytes: their size.
        samples: number of samples.
        sources: number of samples by source.
        extensions: number of images by file extension.
        unusable: number of samples that could not be measured, by reason.
        empty_answers: number of answers without text.
        contents: 8 bytes of the hash of each sample's text and images, to find duplicates.
        measured: the values of each measure.
    """

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    extensions: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    empty_answers: int = 0
    contents: "array[int]" = field(default_factory=lambda: array("Q"))
    measured: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: "Statistics") -> None:
        """Adds the statistics of other samples."""
        self.samples += other.samples
        self.sources.update(other.sources)
        self.extensions.update(other.extensions)
        self.unusable.update(other.unusable)
        self.empty_answers += other.empty_answers
        self.contents += other.contents
        for name, values in other.measured.items():
            self.measured[name] += values

    def summary(self) -> dict[str, Any]:
        """Returns plain numbers: the counts, and total, mean and PERCENTILES of each measure."""
        return {
            "shards": self.shards,
            "bytes": self.bytes,
            "samples": self.samples,
            "images": sum(self.measured["images"]),
            "unusable": dict(self.unusable.most_common()),
            "empty_answers": self.empty_answers,
            "duplicates": len(self.contents) - len(np.unique(self.contents)),
            "sources": dict(self.sources.most_common()),
            "extensions": dict(self.extensions.most_common()),
            "measures": {name: _spread(self.measured[name]) for name in MEASURES if self.measured[name]},
        }


def collect_statistics(
    store: SampleStore,
    encoder: ConversationEncoder | None = None,
    processes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Returns the statistics of all samples of a store.

    Args:
        store: the samples.
        encoder: counts tokens; it has 0 tokens per image, so that only text is counted. None counts no tokens.
        processes: as in map_in_processes.
        progress: called with the number of newly measured samples.
    """
    sizes = (remote_size(shard) if is_remote(shard) else Path(shard).stat().st_size for shard in store.shards)
    total = Statistics(shards=len(store.shards), bytes=sum(sizes))
    for chunk in map_in_processes(partial(_measure, store, encoder), chunks_of(len(store)), processes):
        total.add(chunk)
        progress(chunk.samples)
    return total


def _measure(store: SampleStore, encoder: ConversationEncoder | None, numbers: range) -> Statistics:
    statistics = Statistics(samples=len(numbers))
    for i in numbers:
        try:
            _measure_sample(store, encoder, i, statistics)
        except SampleError as error:
            statistics.unusable[error.reason] += 1
    return statistics


def _measure_sample(store: SampleStore, encoder: ConversationEncoder | None, i: int, into: Statistics) -> None:
    record = store.record(i)
    content = content_of(store, i, record)
    values_of: dict[str, list[int]] = defaultdict(list)
    extensions = []
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8)
    images = store.encoded_images(i)
    store.check_together(i, [encoded for _, encoded in images])
    for suffix, encoded in images:
        digest.update(hashlib.sha256(encoded).digest())
        header = image_header(store, i, suffix, encoded)
        values_of["width"].append(header.width)
        values_of["height"].append(header.height)
        values_of["image_bytes"].append(len(encoded))
        extensions.append(suffix.rpartition(".")[2])
    values_of["images"] = [len(extensions)]
    if isinstance(content, str):
        values_of["characters"], values_of["turns"] = [len(content)], [1]
        answers = [content]
    else:
        texts = [_text(message) for message in content]
        answers = [text for message, text in zip(content, texts, strict=True) if message["role"] == "assistant"]
        values_of["characters"], values_of["turns"] = [sum(map(len, texts))], [len(answers)]
    if encoder is not None:
        labels = _labels(store, i, encoder, content)
        values_of["tokens"] = [len(labels)]
        values_of["supervised"] = [sum(label != IGNORE_INDEX for label in labels)]
    source = record.get("source")
    into.sources[source if isinstance(source, str) else NO_SOURCE] += 1
    into.extensions.update(extensions)
    into.empty_answers += sum(not answer.strip() for answer in answers)
    into.contents.append(int.from_bytes(digest.digest(), "little"))
    for name, values in values_of.items():
        into.measured[name] += values


def _labels(store: SampleStore, i: int, encoder: ConversationEncoder, content: Any) -> list[int]:
    try:
        return (encoder.caption(content) if isinstance(content, str) else encoder.encode(content))[1]
    except DataError as error:
        raise store.error(i, "not encodable", str(error)) from None


def _text(message: Message) -> str:
    return "".join(part["text"] for part in parts_of(message) if part["type"] == "text")


def _spread(values: Sequence[int]) -> dict[str, float]:
    numbers: NDArray[np.int64] = np.asarray(values, dtype=np.int64)
    # "nearest" returns values that occur, rather than half an image.
    points = np.percentile(numbers, PERCENTILES, method="nearest")
    percentiles = {f"p{percentile}": int(point) for percentile, point in zip(PERCENTILES, points, strict=True)}
    return {"total": int(numbers.sum()), "mean": float(numbers.mean()), **percentiles}
