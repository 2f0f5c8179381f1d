"""Loads the rows of the order as batches; bad samples are dropped and counted, and too many of them are an error."""

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from weakref import WeakSet

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batching.collate import Collate, EncodedSample
from datamodules.batching.rows import Row, Rows
from datamodules.batching.workers import read_ahead
from datamodules.encoding.items import Piece
from datamodules.encoding.views import View
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.types import Batch, PromptedBatch

log = logging.getLogger(__name__)

FeatureLookup = Callable[[str, int], dict[str, Tensor]]
"""(split, sample number) -> {source: [I_sample, N, D]}: a frozen encoder's features of that sample's images."""

MIN_SAMPLES_JUDGED = 100
"""Samples to see before the fraction of bad ones is compared with the limit."""
MAX_SUBSTITUTES = 100
"""Samples to try as a substitute for a batch whose samples are all bad."""


@dataclass
class LoadedBatch:
    """The result of loading one batch's rows.

    Attributes:
        batch: the batch; None where no sample could be used, or on an error.
        seen: number of samples by the index of their dataset.
        refilled: whether all samples of the rows were bad, so that another sample was taken.
        bad: errors of the samples that were left out.
        truncated: numbers of the samples that were shortened.
        error: the error that ends the run.
    """

    batch: Batch | PromptedBatch | None = None
    seen: Counter[int] = field(default_factory=Counter)
    refilled: bool = False
    bad: list[SampleError] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    error: UserError | None = None


class BatchDataset(Dataset[LoadedBatch]):
    """Maps Rows to LoadedBatch: a pure function of the rows, so that any worker gives the same batch.

    Args:
        store: the samples of a split.
        views: the view of each dataset, which encodes its samples.
        ends: the number of the first sample after each dataset.
        collate: makes the batch.
        lookup: returns features in place of images; None for images.
    """

    def __init__(
        self,
        store: SampleStore,
        views: Sequence[View],
        ends: Sequence[int],
        collate: Collate,
        lookup: FeatureLookup | None,
    ) -> None:
        self.store, self.views, self.ends, self.collate, self.lookup = store, views, ends, collate, lookup

    def __getitem__(self, rows: Rows) -> LoadedBatch:
        """Reads the rows' pieces; if all of them are bad, the batch is the next good sample in the store."""
        loaded = LoadedBatch()
        try:
            samples = [kept for row in rows.rows if (kept := self._read_row(row, loaded))]
            for step in range(1, MAX_SUBSTITUTES + 1):
                if samples:
                    break
                loaded.refilled = True
                substitute = self._read(Piece((rows.pieces[-1].sample + step) % len(self.store)), loaded)
                samples = [] if substitute is None else [[substitute]]
            if samples:
                loaded.batch = self.collate(samples, rows)
        except UserError as error:
            # It is returned rather than raised: torch turns an exception in a worker into pages of traceback.
            loaded.error = error
        return loaded

    def _read_row(self, row: Row, loaded: LoadedBatch) -> list[EncodedSample]:
        return [sample for piece in row if (sample := self._read(piece, loaded)) is not None]

    def _read(self, piece: Piece, loaded: LoadedBatch) -> EncodedSample | None:
        dataset = bisect_right(self.ends, piece.sample)
        loaded.seen[dataset] += 1
        try:
            encoded = self.views[dataset].encode(self.store, piece)
            key = self.store.key(piece.sample)
            if self.lookup is None:
                images = self.store.images(piece.sample)[: encoded.images]
                sample = EncodedSample(key, dataset, encoded, images)
            else:
                all_features = self.lookup(self.store.split, piece.sample)
                features = {source: feature[: encoded.images] for source, feature in all_features.items()}
                sample = EncodedSample(key, dataset, encoded, features=features)
        except SampleError as error:
            loaded.bad.append(error)
            return None
        if encoded.truncated:
            loaded.truncated.append(piece.sample)
        return sample


@dataclass
class Tally:
    """Counts since the loader was made.

    Attributes:
        seen: samples that were read.
        datasets: the same by the index of their dataset.
        bad: dropped samples by reason.
        truncated: shortened samples.
        last: the error of the last dropped sample.
    """

    seen: int = 0
    datasets: Counter[int] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    last: SampleError | None = None


class CountingLoader(ABC):
    """An iterable of batches that counts its samples; all counting happens in this process, not in the workers.

    Args:
        max_bad_fraction: fraction of bad samples above which iterating raises DataError with shard and key.
    """

    def __init__(self, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.tally = Tally()
        self._reading: WeakSet[Generator[Batch | PromptedBatch, None, None]] = WeakSet()

    def __iter__(self) -> Iterator[Batch | PromptedBatch]:
        """Returns an iterator over the batches."""
        batches = self._batches()
        self._reading.add(batches)
        return batches

    def close(self) -> None:
        """Ends all iterators over this loader, with their workers; they may be referred to by a traceback."""
        for batches in list(self._reading):
            batches.close()

    @abstractmethod
    def _batches(self) -> Generator[Batch | PromptedBatch, None, None]:
        """Yields the batches."""

    def _count(self, loaded: LoadedBatch) -> Batch | PromptedBatch:
        """Counts a loaded batch and returns it; DataError where it has no batch or too many samples were bad."""
        tally = self.tally
        first = tally.seen == 0
        tally.seen += loaded.seen.total()
        tally.datasets += loaded.seen
        tally.bad.update(error.reason for error in loaded.bad)
        tally.truncated += len(loaded.truncated)
        for error in loaded.bad:
            log.warning("skipped %s", error)
            tally.last = error
        self._log_shortened(loaded.truncated)
        if loaded.error is not None:
            raise loaded.error
        too_many = tally.seen >= MIN_SAMPLES_JUDGED and tally.bad.total() > self.max_bad_fraction * tally.seen
        if loaded.batch is None or too_many or (first and loaded.refilled):
            reasons = ", ".join(f"{reason}: {count}" for reason, count in tally.bad.most_common())
            raise DataError(
                f"{tally.bad.total()} of {tally.seen} samples cannot be used ({reasons}), more than max_bad_fraction "
                f"{self.max_bad_fraction}; the last is {tally.last}"
            )
        return loaded.batch

    @abstractmethod
    def _log_shortened(self, samples: list[int]) -> None:
        """Logs shortened samples, which `tally` has already counted."""


class BatchLoader(CountingLoader):
    """An iterable of batches, each a function of its rows.

    Args:
        dataset: loads the batches.
        rows: the rows of each batch, in order.
        workers: processes that read ahead; 0 reads in this one. The batches are the same for any number.
        max_bad_fraction: as in CountingLoader.
    """

    def __init__(self, dataset: BatchDataset, rows: Iterable[Rows], workers: int, max_bad_fraction: float) -> None:
        super().__init__(max_bad_fraction)
        self.dataset, self.rows, self.workers = dataset, rows, workers
        self._shortened = np.zeros(len(dataset.store), dtype=bool)

    def _batches(self) -> Generator[Batch | PromptedBatch, None, None]:
        with read_ahead(self.dataset, self.workers, self.rows) as batches:
            for loaded in batches:
                yield self._count(loaded)

    def _log_shortened(self, samples: list[int]) -> None:
        """Logs the first, second, fourth, eighth ... shortened sample; each sample counts once."""
        for sample in samples:
            if not self._shortened[sample]:
                self._shortened[sample] = True
                count = int(np.count_nonzero(self._shortened))
                if count.bit_count() == 1:
                    log.info("shortened %s to fit sequence_length, %d so far", self.dataset.store.name(sample), count)


class FiniteBatchLoader(BatchLoader):
    """A BatchLoader with a finite number of rows."""

    def __len__(self) -> int:
        assert isinstance(self.rows, Sized)
        return len(self.rows)
