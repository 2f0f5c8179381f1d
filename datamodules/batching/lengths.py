"""Measures the tokens of every sample once, and caches them next to the shards, so that rows can be planned."""

import dataclasses
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from torch.utils.data import Dataset

from datamodules.batching.loader import MIN_SAMPLES_JUDGED
from datamodules.batching.workers import read_ahead
from datamodules.encoding.items import Items
from datamodules.encoding.over_long import TOO_LONG
from datamodules.encoding.views import TextView
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import progress

log = logging.getLogger(__name__)

CHUNK = 256
"""Samples that a worker measures at a time."""

_FORMAT = 3
"""Version of the cache; it is increased when the same samples and view would give other items or counts."""

Measured = list[tuple[int, int, int, int]]
"""(sample, first turn, last turn, tokens) of each item, turns 0 and -1 for a whole sample."""


def measure_items(store: SampleStore, samples: range, view: TextView, folder: Path | None, workers: int) -> Items:
    """Returns the items of these samples, from a cache file in `folder` or measured now.

    Measuring reads and tokenises every record, about a hundred thousand in a minute; it decodes no image. Where images
    become tiles it also reads all images, for the sizes in their headers. Samples that cannot be used are left out and
    counted.

    Args:
        store: the samples of a split.
        samples: their numbers.
        view: encodes them.
        folder: the folder of the cache; None for no cache.
        workers: processes that measure; 0 measures in this one.
    """
    name = f"{store.split}.lengths-{_identity(store, samples, view)}.npz"
    path = None if folder is None else folder / name
    with _locked(path):
        items = read_items(path) if path is not None and path.is_file() else None
        if items is None:
            items = _measure(store, samples, view, workers)
            if path is not None:
                write_items(items, path)
    return items


def log_counts(
    items: Items, store: SampleStore, samples: range, view: TextView, name: str, max_bad_fraction: float
) -> None:
    """Logs how many samples were split, truncated or left out; warns where more than `max_bad_fraction` are left out.

    Args:
        name: name of the dataset, "" where it is the only one.

    Raises:
        DataError: no sample is left, or more than `max_bad_fraction` of them cannot be used.
    """
    if not items.counts:
        return
    place = f"{store.split} of {name}" if name else store.split
    labels = {"dropped": f"dropped as longer than sequence_length {view.sequence_length}"}
    labels |= {"split": "split, with a row for each answer"} if view.by_turn else {}
    counts = ", ".join(f"{count} {labels.get(label, label)}" for label, count in items.counts.items())
    bad = sum(count for label, count in items.counts.items() if label.startswith("bad"))
    if len(items) == 0:
        raise DataError(f"no sample of {place} can be used: {counts}{_first_bad(store, samples, view) if bad else ''}")
    if len(samples) >= MIN_SAMPLES_JUDGED and bad > max_bad_fraction * len(samples):
        raise DataError(
            f"{bad} of {len(samples)} samples of {place} cannot be used ({counts}), more than max_bad_fraction "
            f"{max_bad_fraction}{_first_bad(store, samples, view)}; `fvl shards check` names them"
        )
    dropped = items.counts.get("dropped", 0)
    if bad + dropped <= max_bad_fraction * len(samples):
        log.info("%s, %d samples: %s", place, len(samples), counts)
    else:
        advice = "; data.sequence_length and data.over_long define what is too long" if dropped else ""
        log.warning("%s, %d samples: %s%s", place, len(samples), counts, advice)


def _first_bad(store: SampleStore, samples: range, view: TextView) -> str:
    """Describes the first sample that cannot be used."""
    for sample in samples:
        try:
            view.measure(store, sample)
        except SampleError as error:
            if error.reason != TOO_LONG:
                return f"; the first is {error}"
    return ""


class _Measuring(Dataset[tuple[Measured, "Counter[str]"]]):
    """Maps the number of a chunk of samples to their items and counts; runs in workers."""

    def __init__(self, store: SampleStore, samples: range, view: TextView) -> None:
        self.store, self.samples, self.view = store, samples, view

    def __len__(self) -> int:
        return -(-len(self.samples) // CHUNK)

    def __getitem__(self, chunk: int) -> tuple[Measured, "Counter[str]"]:
        measured: Measured = []
        counts: Counter[str] = Counter()
        for sample in self.samples[chunk * CHUNK : (chunk + 1) * CHUNK]:
            try:
                measure = self.view.measure(self.store, sample)
            except SampleError as error:
                counts["dropped" if error.reason == TOO_LONG else f"bad ({error.reason})"] += 1
                continue
            counts["split"] += len(measure.pieces) > 1
            counts["truncated"] += measure.truncated
            for turns, tokens in measure.pieces:
                first, last = turns or (0, -1)
                measured.append((sample, first, last, tokens))
        return measured, counts


def _measure(store: SampleStore, samples: range, view: TextView, workers: int) -> Items:
    chunk_tables: list[Any] = []
    counts: Counter[str] = Counter()
    measuring = _Measuring(store, samples, view)
    with (
        read_ahead(measuring, workers, range(len(measuring))) as chunks,
        progress(MofNCompleteColumn(), TimeRemainingColumn()) as bar,
    ):
        task = bar.add_task(f"measuring {store.split}", total=len(samples))
        for measured, chunk_counts in chunks:
            chunk_tables.append(np.array(measured, dtype=np.int64).reshape(-1, 4))
            counts += chunk_counts
            bar.advance(task, CHUNK)
    table = np.concatenate(chunk_tables) if chunk_tables else np.zeros((0, 4), dtype=np.int64)
    first, last, tokens = (table[:, column].astype(np.int32) for column in (1, 2, 3))
    return Items(table[:, 0], first, last, tokens, dict(sorted(counts.items())))


def _identity(store: SampleStore, samples: range, view: TextView) -> str:
    """Hashes everything that determines the items: the shards' content, the samples, and how they become tokens."""
    planners, planner = view.plan.planners, view.plan.planners[0]
    inputs: list[Any] = [
        _FORMAT,
        store.content_hash(),
        [samples.start, samples.stop],
        type(view).__name__,
        planner.tokenizer.backend_tokenizer.to_str(),
        planner.template.text if planner.tokenizer.chat_template else None,
        {name: str(token) for name, token in planner.tokenizer.special_tokens_map.items()},
        planner.image_token_id,
        planner.tokens_per_image,
        view.sequence_length,
        view.over_long,
        *(["by turn"] if view.by_turn else []),
    ]
    if view.plan.tiled or len(planners) > 1:
        inputs += [(one.tokens_per_image, one.tiling and dataclasses.asdict(one.tiling)) for one in planners]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def read_items(path: Path) -> Items | None:
    """Reads the items of a cache file; None, and a warning, where it is broken."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Items(
                samples=arrays["samples"],
                first_turn=arrays["first_turn"],
                last_turn=arrays["last_turn"],
                tokens=arrays["tokens"],
                counts=json.loads(str(arrays["counts"])),
            )
    except (OSError, ValueError, KeyError, EOFError):
        log.warning("%s cannot be read, so it is made again", path)
        return None


def write_items(items: Items, path: Path) -> None:
    """Writes measured items to a file, atomically; only warns where it cannot be written."""
    try:
        with atomic_write(path) as tmp_path, tmp_path.open("wb") as file:
            np.savez(
                file,
                samples=items.samples,
                first_turn=items.first_turn,
                last_turn=items.last_turn,
                tokens=items.tokens,  # type: ignore[arg-type]
                counts=np.array(json.dumps(items.counts)),
            )
    except OSError as error:
        log.warning("the lengths %s cannot be written (%s), so the next run measures again", path, error.strerror)


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Locks a cache file, so that one process measures and the others wait for its file."""
    writable = path is not None and os.access(path.parent, os.W_OK)
    with FileLock(f"{path}.lock") if writable else nullcontext():
        yield


def concatenate(datasets: Sequence[Items]) -> Items:
    """Returns the items of several datasets, one after the other."""
    if len(datasets) == 1:
        return datasets[0]
    counts: Counter[str] = Counter()
    for items in datasets:
        counts.update(items.counts)
    tokens = [items.tokens for items in datasets if items.tokens is not None]
    return Items(
        np.concatenate([items.samples for items in datasets]),
        np.concatenate([items.first_turn for items in datasets]),
        np.concatenate([items.last_turn for items in datasets]),
        np.concatenate(tokens) if len(tokens) == len(datasets) else None,
        dict(counts),
    )
