"""Turns the order of items into rows of batches: padded, grouped by length, or packed.

A position is ONE number, the same on all ranks, from which the sequence of rows can be resumed. The items are taken
from the global order in windows of equal size; position `w * size + r` is before row r of window w. The rows of a
window depend on its items only, so no state is carried from one window to the next.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.batching.mixture_order import GlobalOrder
from datamodules.batching.packing import best_fit
from datamodules.encoding.items import Items, Piece

WINDOW = 2048
"""Items per window; a smaller dataset has smaller windows, so that no window contains an item twice."""

Layout = Literal["padded", "grouped", "packed"]
Row = tuple[Piece, ...]
"""The pieces of one row; a single one without packing."""


@dataclass(frozen=True)
class Rows:
    """The rows of one rank's batch.

    Attributes:
        rows: the pieces of each row.
        position: the position after this batch; a run that stops here resumes from it.
        supervised: False for a row that only keeps a rank in step, where the split has no row left for it.
    """

    rows: tuple[Row, ...]
    position: int
    supervised: bool = True

    @property
    def pieces(self) -> list[Piece]:
        """The pieces of all rows, in order."""
        return [piece for row in self.rows for piece in row]


class RowOrder:
    """The endless sequence of rows.

    Args:
        order: the order of the items.
        items: the items; their tokens are needed for `grouped` and `packed`.
        layout: padded: one item per row, in order. grouped: one item per row, sorted by length within a window, so that
            a batch has rows of similar length. packed: as many items per row as fit into `capacity`.
        capacity: number of tokens in a packed row.
    """

    def __init__(self, order: GlobalOrder, items: Items, layout: Layout = "padded", capacity: int = 0) -> None:
        assert layout == "padded" or items.tokens is not None
        assert sum(order.sizes) == len(items)
        self.order, self.items, self.layout, self.capacity = order, items, layout, capacity
        self.window_size = min(WINDOW, len(items))

    def after(self, position: int) -> Iterator[tuple[list[int], int]]:
        """Yields the items of every row from `position` on, with the position after the row."""
        window, skip = divmod(position, self.window_size)
        while True:
            rows = self._window(window)
            for number in range(skip, len(rows)):
                last = number + 1 == len(rows)
                yield rows[number], (window + last) * self.window_size + (0 if last else number + 1)
            window, skip = window + 1, 0

    def _window(self, window: int) -> list[list[int]]:
        drawn = self.order.take(window * self.window_size, (window + 1) * self.window_size)
        if self.layout == "padded":
            return [[item] for item in drawn.tolist()]
        assert self.items.tokens is not None
        lengths = self.items.tokens[drawn]
        if self.layout == "grouped":
            # Windows alternate between ascending and descending, so that a batch across two has similar lengths too.
            by_length = np.argsort(lengths, kind="stable")
            return [[item] for item in drawn[by_length if window % 2 == 0 else by_length[::-1]].tolist()]
        rows = best_fit(lengths, self.capacity)
        # Best fit starts with the longest items: without a shuffle, rows would go from few items to many in a window.
        shuffled = np.random.default_rng([self.order.seed, window]).permutation(len(rows))
        return [drawn[rows[number]].tolist() for number in shuffled.tolist()]


@dataclass(frozen=True)
class TrainRows:
    """Endless batches of one rank from `position` on: rows [rank * b, (rank + 1) * b) of each global batch."""

    order: RowOrder
    batch_size: int
    position: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Rows]:
        rows = self.order.after(self.position)
        local_rows = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while True:
            kept: list[Row] = []
            for number in range(self.batch_size * self.world_size):
                row, position = next(rows)
                if number in local_rows:
                    kept.append(tuple(self.order.items[item] for item in row))
            yield Rows(tuple(kept), position)


@dataclass(frozen=True)
class ValidationRows:
    """One pass over the items in order for one rank, one item per row; the last batch may be smaller.

    All ranks get the same number of batches. A rank without a row in the last global batch gets the split's first item,
    unsupervised: with sharding, every rank must take part in every forward pass.
    """

    items: Items
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-len(self.items) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Rows]:
        step, count = self.batch_size * self.world_size, len(self.items)
        for start in range(0, count, step):
            first = min(start + self.rank * self.batch_size, count)
            rows = tuple((self.items[number],) for number in range(first, min(first + self.batch_size, count)))
            position = min(start + step, count)
            yield Rows(rows, position) if rows else Rows(((self.items[0],),), position, supervised=False)


def single_rows(samples: Sequence[int]) -> Rows:
    """Returns rows of one whole sample each."""
    return Rows(tuple((Piece(sample),) for sample in samples), position=0)
