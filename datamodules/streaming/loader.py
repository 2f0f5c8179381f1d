"""Streams of samples to batches: rows laid out, samples encoded, and how far the shards are passed."""

import logging
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.batching.collate import Collate, EncodedSample
from datamodules.batching.loader import (
    MIN_SAMPLES_JUDGED,
    CountingLoader,
    LoadedBatch,
)
from datamodules.batching.packing import best_fit
from datamodules.batching.rows import Layout, Rows
from datamodules.batching.workers import read_ahead
from datamodules.encoding.items import Piece
from datamodules.encoding.over_long import Turns
from datamodules.encoding.views import TextView, View
from datamodules.storage.sample import SampleError
from datamodules.streaming.dataset_stream import Drawn, StreamedSet, interleaved
from datamodules.streaming.sample import StreamedSample
from datamodules.streaming.shard_order import Passed
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.types import Batch, PromptedBatch

log = logging.getLogger(__name__)

WINDOW = 512
"""Samples that a reader packs, or groups by length, together."""


@dataclass
class StreamedPiece:
    """A sample of a stream, or some of its turns, with the tokens by which rows are planned."""

    dataset: int
    drawn: Drawn
    sample: StreamedSample
    turns: Turns | None = None
    tokens: int = 0


@dataclass
class StreamedBatch(LoadedBatch):
    """As LoadedBatch, with the reader that made it and, of each data set, its first shard visit that is not passed."""

    reader: int = 0
    passed: tuple[int, ...] = ()


class StreamDataset(IterableDataset[StreamedBatch]):
    """Batches without end, those of one reader in each worker process.

    Args:
        shares: how much of what is drawn comes from each set, in any unit.
        views: how the samples of each set become tokens.
        split: whether a sample may become several pieces.
        capacity: tokens of a packed row.
    """

    def __init__(
        self,
        sets: Sequence[StreamedSet],
        shares: Sequence[float],
        views: Sequence[View],
        layout: Layout,
        split: bool,
        capacity: int,
        batch_size: int,
        collate: Collate,
    ) -> None:
        assert sets and len(sets) == len(shares) == len(views)
        self.sets, self.shares, self.views, self.layout, self.split = sets, list(shares), views, layout, split
        self.capacity, self.batch_size, self.collate = capacity, batch_size, collate

    def __iter__(self) -> Iterator[StreamedBatch]:
        """Yields this reader's batches; the last one has the error that ends the stream."""
        worker = get_worker_info()
        reader = 0 if worker is None else worker.id
        sources, passed = zip(*(one.draws() for one in self.sets), strict=True)
        state = _Reader(self, list(sources), list(passed), reader)
        while True:
            loaded = state.next_batch()
            yield loaded
            if loaded.error is not None:
                return


class _Reader:
    """The rows of one reader, and what it counts on the way to its next batch."""

    def __init__(
        self, dataset: StreamDataset, sources: list[Iterator[Drawn]], passed: list[Passed], number: int
    ) -> None:
        self._dataset, self._passed, self._number = dataset, passed, number
        self._draws = interleaved(sources, dataset.shares)
        self._rows = self._padded() if dataset.layout == "padded" else self._planned()
        self._loaded = StreamedBatch()

    def next_batch(self) -> StreamedBatch:
        """Reads the next rows; a batch of which no sample can be used takes the next rows that have one."""
        loaded = self._loaded = StreamedBatch(reader=self._number)
        try:
            size = self._dataset.batch_size
            samples = self._encoded_rows(size)
            for _ in range(MIN_SAMPLES_JUDGED):
                if samples:
                    break
                loaded.refilled = True
                samples = self._encoded_rows(1)
            if samples:
                loaded.batch = self._dataset.collate(samples, Rows((), position=0))
        except UserError as error:
            # As a value: torch would turn an exception raised in a worker into pages of traceback.
            loaded.error = error
        loaded.passed = tuple(passed.first_unfinished for passed in self._passed)
        return loaded

    def _encoded_rows(self, count: int) -> list[list[EncodedSample]]:
        rows = ([self._encoded(piece) for piece in next(self._rows)] for _ in range(count))
        return [kept for row in rows if (kept := [sample for sample in row if sample is not None])]

    def _encoded(self, piece: StreamedPiece) -> EncodedSample | None:
        self._passed[piece.dataset].finish(piece.drawn.visit)
        try:
            encoded = self._dataset.views[piece.dataset].encode(piece.sample, Piece(0, piece.turns))
            images = piece.sample.images(0)[: encoded.images]
        except SampleError as error:
            self._loaded.bad.append(error)
            return None
        if encoded.truncated:
            self._loaded.truncated.append(0)
        return EncodedSample(piece.sample.key(0), piece.dataset, encoded, images)

    def _pieces(self) -> Iterator[StreamedPiece]:
        """Yields the pieces of all samples that are drawn, measured where rows are planned or samples are split."""
        measure = self._dataset.layout != "padded" or self._dataset.split
        bad_in_a_row = 0
        for number, drawn in self._draws:
            self._loaded.seen[number] += 1
            try:
                if isinstance(drawn.sample, SampleError):
                    raise drawn.sample
                drawn.sample.check()
                pieces = self._measured(number, drawn) if measure else [StreamedPiece(number, drawn, drawn.sample)]
            except SampleError as error:
                self._loaded.bad.append(error)
                self._passed[number].finish(drawn.visit)
                bad_in_a_row += 1
                if bad_in_a_row >= MIN_SAMPLES_JUDGED:
                    raise DataError(f"{bad_in_a_row} samples in a row cannot be used, the last: {error}") from None
                continue
            bad_in_a_row = 0
            for _ in pieces[1:]:
                self._passed[number].add(drawn.visit)
            yield from pieces

    def _measured(self, number: int, drawn: Drawn) -> list[StreamedPiece]:
        view = self._dataset.views[number]
        assert isinstance(view, TextView) and isinstance(drawn.sample, StreamedSample)
        found = view.measure(drawn.sample, 0)
        return [StreamedPiece(number, drawn, drawn.sample, turns, tokens) for turns, tokens in found.pieces]

    def _padded(self) -> Iterator[list[StreamedPiece]]:
        for piece in self._pieces():
            yield [piece]

    def _planned(self) -> Iterator[list[StreamedPiece]]:
        """Yields rows that are packed, or of like length one after the other, window by window."""
        rng = random.Random(f"{self._dataset.sets[0].order.seed} {self._number}")
        pieces, up = self._pieces(), True
        while True:
            window = [next(pieces) for _ in range(WINDOW)]
            lengths = np.array([piece.tokens for piece in window], dtype=np.int32)
            if self._dataset.layout == "packed":
                rows = best_fit(lengths, self._dataset.capacity)
                # Best fit begins with the longest: unshuffled, the rows of a window would go from few samples to many.
                rng.shuffle(rows)
            else:
                # Up in one window and down in the next, so that a batch over the seam has rows of like length too.
                order = np.argsort(lengths, kind="stable").tolist()
                rows, up = [[place] for place in (order if up else reversed(order))], not up
            yield from ([window[place] for place in row] for row in rows)


class StreamLoader(CountingLoader):
    """An iterable of a stream's batches without end.

    The position of a batch has, of each data set, how many visits of its endless order all readers of this rank have
    passed; a run that stops after the batch reads on from there.

    Args:
        start: the position that the stream begins at.
        workers: processes that read, each shards of its own; 0 reads in this one.
    """

    def __init__(self, dataset: StreamDataset, start: tuple[int, ...], workers: int, max_bad_fraction: float) -> None:
        super().__init__(max_bad_fraction)
        self.dataset, self.start, self.workers = dataset, start, workers

    def _batches(self) -> Generator[Batch | PromptedBatch, None, None]:
        passed = dict.fromkeys(range(max(1, self.workers)), self.start)
        with read_ahead(self.dataset, self.workers) as batches:
            for loaded in batches:
                passed[loaded.reader] = loaded.passed
                batch = self._count(loaded)
                yield replace(batch, position=tuple(map(min, zip(*passed.values(), strict=True))))

    def _log_shortened(self, samples: list[int]) -> None:
        """Logs the first, second, fourth, eighth ... sample that is shortened."""
        before = self.tally.truncated - len(samples)
        for count in range(before + 1, self.tally.truncated + 1):
            if count.bit_count() == 1:
                log.info("shortened %d samples to fit sequence_length so far", count)
