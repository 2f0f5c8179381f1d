"""Rows of the order to batches: read, encode, pad; bad samples are dropped, counted and, past a limit, an error."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.order import Rows
from datamodules.pixels import to_pixels
from datamodules.store import SampleError, SampleStore
from datamodules.views import Encoded, View
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.types import IGNORE_INDEX, Batch, DataContext, PromptedBatch

log = logging.getLogger(__name__)

FeatureLookup = Callable[[str, int], dict[str, Tensor]]
"""(split, sample number) -> {source: [I_sample, N, D]}: a frozen encoder's features of that sample's images."""

PATIENCE = 100
"""Samples seen before the fraction of bad ones is held against the limit; also how far a batch of none is refilled."""


@dataclass
class Sample:
    """One row before it is padded; `features` instead of `images` where they were computed before."""

    key: str
    encoded: Encoded
    images: list[NDArray[np.uint8]]
    features: dict[str, Tensor]


@dataclass
class Loaded:
    """What became of one batch's rows: the batch, or the error that ends the run, and the samples left out."""

    batch: Batch | PromptedBatch | None = None
    seen: int = 0
    refilled: bool = False
    bad: list[SampleError] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    error: UserError | None = None


Collate = Callable[[list[Sample], Rows], Batch | PromptedBatch]


class BatchDataset(Dataset[Loaded]):
    """Rows -> Loaded, a pure function of the rows, so that it does not matter which worker runs it."""

    def __init__(self, store: SampleStore, view: View, collate: Collate, lookup: FeatureLookup | None) -> None:
        self.store, self.view, self.collate, self.lookup = store, view, collate, lookup

    def __getitem__(self, rows: Rows) -> Loaded:
        """Reads the rows' samples; a batch left with none takes the first good sample that follows in the store."""
        loaded = Loaded()
        try:
            samples = [sample for i in rows.indices if (sample := self._read(i, loaded)) is not None]
            for step in range(1, PATIENCE + 1):
                if samples:
                    break
                loaded.refilled = True
                substitute = self._read((rows.indices[-1] + step) % len(self.store), loaded)
                samples = [] if substitute is None else [substitute]
            if samples:
                loaded.batch = self.collate(samples, rows)
        except UserError as error:
            # As a value: torch would turn an exception raised in a worker into pages of traceback.
            loaded.error = error
        return loaded

    def _read(self, i: int, loaded: Loaded) -> Sample | None:
        loaded.seen += 1
        try:
            encoded = self.view(self.store, i)
            if self.lookup is None:
                sample = Sample(self.store.key(i), encoded, self.store.images(i)[: encoded.images], {})
            else:
                found = self.lookup(self.store.split, i)
                features = {source: feature[: encoded.images] for source, feature in found.items()}
                sample = Sample(self.store.key(i), encoded, [], features)
        except SampleError as error:
            loaded.bad.append(error)
            return None
        if encoded.truncated:
            loaded.truncated.append(sample.key)
        return sample


def row_collate(context: DataContext, with_features: bool) -> Collate:
    """Samples -> Batch, padded on the right to the longest row."""
    tokenizer = context.tokenizer
    # Behind the last token nothing is supervised and nothing attends, so any id pads where there is no pad token.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def collate(samples: list[Sample], rows: Rows) -> Batch:
        examples = [sample.encoded.rows[0] for sample in samples]
        features = None
        if with_features:
            sources = samples[0].features
            features = {source: torch.cat([sample.features[source] for sample in samples]) for source in sources}
        return Batch(
            token_ids=_padded([ids for ids, _ in examples], pad),
            labels=_padded([labels for _, labels in examples], IGNORE_INDEX, rows.supervised),
            images=None if with_features else to_pixels(_images(samples), context.image),
            features=features,
            keys=tuple(sample.key for sample in samples),
            position=rows.position,
        )

    return collate


def prompted_collate(context: DataContext) -> Collate:
    """Samples -> PromptedBatch, targets [I, T, L] padded with IGNORE_INDEX."""

    def collate(samples: list[Sample], rows: Rows) -> PromptedBatch:
        targets = [ids for sample in samples for ids, _ in sample.encoded.rows]
        padded = _padded(targets, IGNORE_INDEX, rows.supervised)
        return PromptedBatch(
            images=to_pixels(_images(samples), context.image),
            targets=padded.view(len(samples), len(context.tasks), -1),
            keys=tuple(sample.key for sample in samples),
            position=rows.position,
        )

    return collate


@dataclass
class Tally:
    """Samples seen, dropped by reason, and shortened to fit, since the loader was made; `last` is the last dropped."""

    seen: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    last: SampleError | None = None


class BatchLoader:
    """An iterable of batches that counts what its samples were; all counting is done here, not in the workers.

    Args:
        rows: what each batch holds, in order.
        workers: processes that read ahead; 0 reads in this one. The batches are the same for any number.
        max_bad_fraction: the fraction of bad samples above which iterating raises DataError with shard and key.
    """

    def __init__(self, dataset: BatchDataset, rows: Iterable[Rows], workers: int, max_bad_fraction: float) -> None:
        self.dataset, self.rows, self.workers, self.max_bad_fraction = dataset, rows, workers, max_bad_fraction
        self.tally = Tally()

    def __iter__(self) -> Iterator[Batch | PromptedBatch]:
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            sampler=self.rows,
            num_workers=self.workers,
            collate_fn=_as_is,
            # Without one of its own a loader draws from torch's global stream, and a resumed run would draw otherwise.
            generator=torch.Generator(),
        )
        for loaded in loader:
            self._count(loaded)
            yield loaded.batch

    def _count(self, loaded: Loaded) -> None:
        tally = self.tally
        first = tally.seen == 0
        tally.seen += loaded.seen
        tally.bad.update(error.reason for error in loaded.bad)
        tally.truncated += len(loaded.truncated)
        for error in loaded.bad:
            log.warning("skipped %s", error)
            tally.last = error
        for key in loaded.truncated:
            log.info("shortened sample '%s' to fit sequence_length", key)
        if loaded.error is not None:
            raise loaded.error
        too_many = tally.seen >= PATIENCE and tally.bad.total() > self.max_bad_fraction * tally.seen
        if loaded.batch is None or too_many or (first and loaded.refilled):
            reasons = ", ".join(f"{reason}: {count}" for reason, count in tally.bad.most_common())
            raise DataError(
                f"{tally.bad.total()} of {tally.seen} samples can't be used ({reasons}), more than max_bad_fraction "
                f"{self.max_bad_fraction}; the last is {tally.last}"
            )


class FiniteBatchLoader(BatchLoader):
    """A BatchLoader whose rows end."""

    def __len__(self) -> int:
        assert isinstance(self.rows, Sized)
        return len(self.rows)


def _images(samples: list[Sample]) -> list[NDArray[np.uint8]]:
    return [image for sample in samples for image in sample.images]


def _padded(rows: list[list[int]], value: int, keep: bool = True) -> Tensor:
    """Rows of ids [B, S] int64, filled up with `value` on the right; nothing but `value` where not `keep`."""
    padded = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    if keep:
        for row, ids in enumerate(rows):
            padded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return padded


def _as_is(loaded: Any) -> Any:
    return loaded
