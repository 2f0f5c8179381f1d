"""How many tokens every sample becomes: measured once, kept beside the shards, so that rows can be planned."""

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
import torch
from filelock import FileLock
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from datamodules.batching.loader import MIN_SAMPLES_JUDGED, as_is
from datamodules.encoding.items import Items
from datamodules.encoding.views import TOO_LONG, TextView
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.terminal import progress

log = logging.getLogger(__name__)

AT_ONCE = 256
"""Samples a worker measures at a time."""

_FORMAT = 3
"""Raised whenever the same samples and view would give other items or counts."""

Measured = list[tuple[int, int, int, int]]
"""(sample, first turn, last turn, tokens) of each item, turns 0 and -1 for a whole sample."""


def measured_items(store: SampleStore, samples: range, view: TextView, folder: Path | None, workers: int) -> Items:
    """The items of these samples, from the file in `folder` (None: nowhere) that fits store, samples and view.

    Measuring reads and tokenises every record, a hundred thousand of them in a minute or so; no image is decoded. What
    can't be used is left out and counted.
    """
    name = f"{store.split}.lengths-{_identity(store, samples, view)}.npz"
    path = None if folder is None else folder / name
    with _alone(path):
        items = read_items(path) if path is not None and path.is_file() else None
        if items is None:
            items = _measure(store, samples, view, workers)
            if path is not None:
                write_items(items, path)
    return items


def tell_counts(
    items: Items, store: SampleStore, samples: range, view: TextView, name: str, max_bad_fraction: float
) -> None:
    """Logs what became of the samples that are not there as they are; a warning where too many are left out.

    Args:
        name: of the data set, "" where it is the only one.

    Raises:
        DataError: not one sample is left, or more than `max_bad_fraction` of them can't be used.
    """
    if not items.counts:
        return
    place = f"{store.split} of {name}" if name else store.split
    words = {"dropped": f"dropped as longer than sequence_length {view.sequence_length}"}
    told = ", ".join(f"{count} {words.get(what, what)}" for what, count in items.counts.items())
    bad = sum(count for what, count in items.counts.items() if what.startswith("bad"))
    if len(items) == 0:
        raise DataError(f"no sample of {place} can be used: {told}{_first_bad(store, samples, view) if bad else ''}")
    if len(samples) >= MIN_SAMPLES_JUDGED and bad > max_bad_fraction * len(samples):
        raise DataError(
            f"{bad} of {len(samples)} samples of {place} can't be used ({told}), more than max_bad_fraction "
            f"{max_bad_fraction}{_first_bad(store, samples, view)}; `fvl shards check` names them"
        )
    dropped = items.counts.get("dropped", 0)
    if bad + dropped <= max_bad_fraction * len(samples):
        log.info("%s: of %d samples %s", place, len(samples), told)
    else:
        advice = "; data.sequence_length and data.over_long say what is too long" if dropped else ""
        log.warning("%s: of %d samples %s%s", place, len(samples), told, advice)


def _first_bad(store: SampleStore, samples: range, view: TextView) -> str:
    """The first of the samples that can't be used, in words."""
    for sample in samples:
        try:
            view.measure(store, sample)
        except SampleError as error:
            if error.reason != TOO_LONG:
                return f"; the first is {error}"
    return ""


class _Measuring(Dataset[tuple[Measured, "Counter[str]"]]):
    """Chunks of samples to what they become; runs in workers."""

    def __init__(self, store: SampleStore, samples: range, view: TextView) -> None:
        self.store, self.samples, self.view = store, samples, view

    def __len__(self) -> int:
        return -(-len(self.samples) // AT_ONCE)

    def __getitem__(self, chunk: int) -> tuple[Measured, "Counter[str]"]:
        measured: Measured = []
        counts: Counter[str] = Counter()
        for sample in self.samples[chunk * AT_ONCE : (chunk + 1) * AT_ONCE]:
            try:
                found = self.view.measure(self.store, sample)
            except SampleError as error:
                counts["dropped" if error.reason == TOO_LONG else f"bad ({error.reason})"] += 1
                continue
            counts["split"] += len(found.pieces) > 1
            counts["truncated"] += found.truncated
            for turns, tokens in found.pieces:
                first, last = turns or (0, -1)
                measured.append((sample, first, last, tokens))
        return measured, counts


def _measure(store: SampleStore, samples: range, view: TextView, workers: int) -> Items:
    chunks = DataLoader(
        _Measuring(store, samples, view),
        batch_size=None,
        num_workers=workers,
        collate_fn=as_is,
        # Without one of its own a loader draws from torch's global stream: the run that measures would be another.
        generator=torch.Generator(),
    )
    parts: list[Any] = []
    counts: Counter[str] = Counter()
    with progress(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(f"measuring {store.split}", total=len(samples))
        for measured, counted in chunks:
            parts.append(np.array(measured, dtype=np.int64).reshape(-1, 4))
            counts += counted
            bar.advance(task, AT_ONCE)
    table = np.concatenate(parts) if parts else np.zeros((0, 4), dtype=np.int64)
    first, last, tokens = (table[:, column].astype(np.int32) for column in (1, 2, 3))
    return Items(table[:, 0], first, last, tokens, dict(sorted(counts.items())))


def _identity(store: SampleStore, samples: range, view: TextView) -> str:
    """Names what was measured: the shards' content, the samples, and everything that says how they become tokens."""
    planner = view.planner
    known = [
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
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def read_items(path: Path) -> Items | None:
    """The items in a file of lengths; None, and a warning, where it is broken."""
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
        log.warning("%s can't be read, so it is made again", path)
        return None


def write_items(items: Items, path: Path) -> None:
    """Measured items to a file, whole or not at all; a warning where that can't be."""
    try:
        with atomic_write(path) as beside, beside.open("wb") as file:
            np.savez(
                file,
                samples=items.samples,
                first_turn=items.first_turn,
                last_turn=items.last_turn,
                tokens=items.tokens,  # type: ignore[arg-type]
                counts=np.array(json.dumps(items.counts)),
            )
    except OSError as error:
        log.warning("the lengths %s can't be written (%s), so the next run measures again", path, error.strerror)


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Of several processes that need the same lengths, one measures and the others wait for its file."""
    writable = path is not None and os.access(path.parent, os.W_OK)
    with FileLock(f"{path}.lock") if writable else nullcontext():
        yield


def joined(parts: Sequence[Items]) -> Items:
    """The items of several data sets, one after the other."""
    if len(parts) == 1:
        return parts[0]
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.counts)
    measured = [part.tokens for part in parts if part.tokens is not None]
    return Items(
        np.concatenate([part.samples for part in parts]),
        np.concatenate([part.first_turn for part in parts]),
        np.concatenate([part.last_turn for part in parts]),
        np.concatenate(measured) if len(measured) == len(parts) else None,
        dict(counts),
    )
