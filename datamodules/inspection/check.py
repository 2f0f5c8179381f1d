"""Checks shards for everything that would stop training, or that training would skip."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.encoding.messages import parts_of
from datamodules.encoding.over_long import Messages
from datamodules.encoding.placeholders import find_placeholder
from datamodules.encoding.views import messages_of
from datamodules.images.decoding import ImageHeader, verify_image
from datamodules.inspection.parallel import map_in_processes
from datamodules.storage.index import ShardIndex, index_as_bytes, index_name, load_index, parse_index, scan_tar
from datamodules.storage.remote import is_remote, read_if_there
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_cache import ShardCache
from datamodules.storage.shard_files import open_index
from datamodules.storage.tar_grouping import TEXTS
from datamodules.storage.writer import Shard
from fvl_lightning.core.errors import DataError

CHUNK = 256
"""Samples that a process checks before it reports."""
MAX_EXAMPLES = 3
"""Problems per reason that are kept; the others are only counted."""


@dataclass(frozen=True)
class ShardProblem:
    """A problem: its reason (a short category), the shard, the sample's key (empty for the shard itself), details."""

    reason: str
    shard: str
    key: str
    detail: str


@dataclass
class Findings:
    """Numbers of checked samples and images, and the problems.

    Attributes:
        samples: checked samples.
        images: checked images.
        counts: number of problems by reason.
        examples: the first problems by reason.
        ignored: ignored members (no image or text) by suffix; they are no problem.
    """

    samples: int = 0
    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[ShardProblem]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, *problems: ShardProblem, count: int | None = None) -> None:
        """Adds problems of one reason; `count` is their number where only examples are given."""
        reason = problems[0].reason
        self.counts[reason] += len(problems) if count is None else count
        self.examples[reason] = [*self.examples.get(reason, []), *problems][:MAX_EXAMPLES]

    def merge(self, other: "Findings") -> None:
        """Adds the findings of other samples."""
        self.samples += other.samples
        self.images += other.images
        self.ignored += other.ignored
        self.counts += other.counts
        for reason, problems in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *problems][:MAX_EXAMPLES]


@dataclass(frozen=True)
class CheckedShard:
    """The findings of a shard as a whole, and whether its samples can be checked."""

    shard: str
    findings: Findings
    usable: bool


def index_shard(cache: ShardCache, shard: str) -> Findings:
    """Indexes a shard that has no index yet; returns its numbers of samples and images, and its problems.

    Raises:
        DataError: a shard that cannot be read, or an index of another tar.
    """
    index = open_index(shard, cache)
    findings = _problems(shard, index)
    findings.samples = len(index)
    is_image = np.array([suffix not in TEXTS for suffix in index.suffixes], dtype=bool)
    findings.images = int(is_image[index.suffix_codes].sum())
    return findings


def check_tar(known: Mapping[str, Shard], cache: ShardCache, shard: str) -> CheckedShard:
    """Checks a shard's size and checksum, its tar structure and its index, but not its samples."""
    findings = Findings()
    try:
        tar = cache.get(shard) if is_remote(shard) else Path(shard)
        fresh = scan_tar(tar)
    except DataError as error:
        findings.add(ShardProblem("unreadable shard", shard, "", str(error)))
        return CheckedShard(shard, findings, usable=False)
    expected = known.get(shard)
    if expected is not None and expected.bytes != fresh.tar_bytes:
        findings.add(ShardProblem("size", shard, "", f"{fresh.tar_bytes} bytes, {expected.bytes} in the manifest"))
    elif expected is not None and _sha256(tar) != expected.sha256:
        findings.add(ShardProblem("checksum", shard, "", "its bytes differ from those that were built"))
    findings.merge(_problems(shard, fresh))
    wrong = _wrong_index(shard, fresh)
    if wrong:
        findings.add(ShardProblem("index", shard, "", wrong))
    return CheckedShard(shard, findings, usable=not wrong and len(fresh) > 0)


def check_samples(
    store: SampleStore, processes: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> Findings:
    """Reads every JSON and decodes every image of a store.

    Args:
        store: the samples.
        processes: as in map_in_processes.
        progress: called with the number of newly checked samples.
    """
    findings = Findings()
    for chunk_findings in map_in_processes(partial(_check_chunk, store), chunks_of(len(store)), processes):
        findings.merge(chunk_findings)
        progress(chunk_findings.samples)
    return findings


def chunks_of(samples: int) -> list[range]:
    """Splits the numbers of all samples into ranges of CHUNK."""
    return [range(start, min(start + CHUNK, samples)) for start in range(0, samples, CHUNK)]


def content_of(store: SampleStore, i: int, record: dict[str, Any]) -> Messages | str:
    """Returns the checked messages of a sample, or else its caption; SampleError where it has neither."""
    if "messages" in record:
        return messages_of(store, i)
    caption = record.get("caption")
    if not isinstance(caption, str):
        raise store.error(i, "no text", "neither messages nor caption")
    return caption


def _check_chunk(store: SampleStore, numbers: range) -> Findings:
    findings = Findings(samples=len(numbers))
    for i in numbers:
        for check in (_check_text, _check_images):
            try:
                check(store, i, findings)
            except SampleError as error:
                findings.add(ShardProblem(error.reason, str(error.shard), error.key, error.detail))
    return findings


def _check_text(store: SampleStore, i: int, findings: Findings) -> None:
    content = content_of(store, i, store.record(i))
    parts = [part for message in content if isinstance(message, dict) for part in parts_of(message)]
    for text in [content] if isinstance(content, str) else [part.get("text", "") for part in parts]:
        placeholder = find_placeholder(text)
        if placeholder:
            raise store.error(i, "placeholder", f"{placeholder!r} is left in a text")


def _check_images(store: SampleStore, i: int, findings: Findings) -> None:
    images = store.encoded_images(i)
    findings.images += len(images)
    store.check_together(i, [encoded for _, encoded in images])
    for suffix, encoded in images:
        image_header(store, i, suffix, encoded)


def image_header(store: SampleStore, i: int, suffix: str, encoded: bytes) -> ImageHeader:
    """Returns the header of an image of sample i; SampleError where it cannot be decoded completely."""
    try:
        return verify_image(encoded)
    except DataError as error:
        raise store.error(i, "broken image", f"{suffix}: {error}") from None


def _problems(shard: str, index: ShardIndex) -> Findings:
    """Returns the refused and ignored members of a tar, as its index records them."""
    findings = Findings(ignored=Counter(index.ignored))
    for reason, problem in index.problems.items():
        names = problem.examples or ("",)
        findings.add(*(ShardProblem(reason, shard, name, "") for name in names), count=problem.count)
    return findings


def _wrong_index(shard: str, fresh: ShardIndex) -> str:
    """Returns what is wrong with the index next to a shard; empty where it is right or missing."""
    try:
        index = _remote_index(shard) if is_remote(shard) else load_index(Path(shard))
    except DataError as error:
        return str(error)
    if index is None or index_as_bytes(index) == index_as_bytes(fresh):
        return ""
    return "it has other samples or offsets than the tar; delete it and it is rebuilt"


def _remote_index(url: str) -> ShardIndex | None:
    name = index_name(url)
    content = read_if_there(name)
    index = None if content is None else parse_index(content, name)
    return None if index is None or index.outdated else index


def _sha256(tar: Path) -> str:
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
