"""From the order of items to rows of batches: padded, of like length, or packed; and the positions between them.

A position is ONE number, the same on all ranks, from which the sequence of rows can be taken up again. The items are
drawn from the global order in windows of equal size; position `w * size + r` is before row r of window w. What the
rows of a window are depends on its items alone, so nothing has to be carried from one window to the next.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamodules.batching.order import GlobalOrder
from datamodules.batching.packing import best_fit
from datamodules.encoding.items import Items, Piece

WINDOW = 2048
"""Items of a window; fewer where there are not as many, or a window would hold the same item several times."""

Layout = Literal["padded", "grouped", "packed"]
Row = tuple[Piece, ...]
"""The pieces that share one row; a single one where nothing is packed."""


@dataclass(frozen=True)
class Rows:
    """The rows of one rank's batch; a run that stops after it goes on from `position`.

    `supervised` is False for a row that only keeps a rank in step where the split has none left for it.
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
        items: what the numbers of the order stand for; their tokens are needed for `grouped` and `packed`.
        layout: padded: an item a row, in the order drawn. grouped: an item a row, the items of a window by length, so
            that rows of like length meet in a batch. packed: as many items in a row as fit into `capacity`.
        capacity: tokens of a packed row.
    """

    def __init__(self, order: GlobalOrder, items: Items, layout: Layout = "padded", capacity: int = 0) -> None:
        assert layout == "padded" or items.tokens is not None
        assert sum(order.sizes) == len(items)
        self.order, self.items, self.layout, self.capacity = order, items, layout, capacity
        self.window_size = min(WINDOW, len(items))

    def after(self, position: int) -> Iterator[tuple[list[int], int]]:
        """The items of every row from `position` on, with the position that follows it."""
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
            # Up in one window and down in the next, so that a batch over the seam has rows of like length too.
            by_length = np.argsort(lengths, kind="stable")
            return [[item] for item in drawn[by_length if window % 2 == 0 else by_length[::-1]].tolist()]
        rows = best_fit(lengths, self.capacity)
        # Best fit begins with the longest: unshuffled, the rows of a window would go from few items to many.
        shuffled = np.random.default_rng([self.order.seed, window]).permutation(len(rows))
        return [drawn[rows[number]].tolist() for number in shuffled.tolist()]


@dataclass(frozen=True)
class TrainRows:
    """Batches without end for one rank, from `position` on: rows [rank * b, (rank + 1) * b) of each global batch."""

    order: RowOrder
    batch_size: int
    position: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Rows]:
        rows = self.order.after(self.position)
        mine = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while True:
            kept: list[Row] = []
            for number in range(self.batch_size * self.world_size):
                row, position = next(rows)
                if number in mine:
                    kept.append(tuple(self.order.items[item] for item in row))
            yield Rows(tuple(kept), position)


@dataclass(frozen=True)
class ValidationRows:
    """One pass in order for one rank, an item a row; all ranks get as many batches, the last of them smaller.

    A rank for which the last global batch has no row gets the split's first item, not supervised: under sharding
    every rank must take part in every forward.
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
    """These whole samples, one a row."""
    return Rows(tuple((Piece(sample),) for sample in samples), position=0)
