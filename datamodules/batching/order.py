"""The order of what is trained on: a pure function of (seed, epoch, position), the same for any ranks and workers."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

DENOMINATOR = 2**20
"""Shares of a mixture are fractions with at most this below the line, so that positions up to 2**43 stay exact."""


class GlobalOrder:
    """An endless sequence over the items of one or several data sets, numbered one set after the other.

    Each data set goes through all its items, in an order of its own for every epoch, before one comes again. Several
    are interleaved so evenly that in any stretch each has its share to within the logarithm of their number.

    Args:
        sizes: items of each data set.
        shares: how much of the whole each gives, in any unit; None for as much as it has.
        names: what each is called: its order depends on its name, not on its neighbours.
        blocks: for a data set that lies far away, how many items each of its blocks holds; they are gone through block
            by block in an order of their own, and shuffled within. None shuffles over everything.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        shares: Sequence[float] | None = None,
        names: Sequence[str] = ("",),
        blocks: Sequence[Sequence[int] | None] | None = None,
    ) -> None:
        assert len(sizes) == len(names)
        assert all(size > 0 for size in sizes)
        self.sizes, self.seed, self.names = tuple(sizes), seed, tuple(names)
        self.shares = [Fraction(str(share)) for share in (shares or sizes)]
        self.blocks = blocks or [None] * len(sizes)
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self._epochs: dict[tuple[int, int], NDArray[np.int64]] = {}

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """The items at the positions from `start` up to `stop`."""
        datasets, places = self._interleave(np.arange(start, stop, dtype=np.int64))
        items = np.empty(stop - start, dtype=np.int64)
        for dataset in np.unique(datasets).tolist():
            at = np.flatnonzero(datasets == dataset)
            epochs, within = np.divmod(places[at], self.sizes[dataset])
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                items[at[now]] = self._first[dataset] + self._epoch(dataset, epoch)[within[now]]
        return items

    def _interleave(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Position -> (data set, how many items of that set came before), in closed form: halves, and halves again.

        Between two parts, the one with the fraction w of the whole has floor(p * w) of the first p positions.
        """
        datasets = np.zeros(len(positions), dtype=np.int64)
        places = positions.copy()
        parts = [(0, len(self.sizes), np.arange(len(positions)))]
        while parts:
            first, last, at = parts.pop()
            if last - first == 1:
                datasets[at] = first
                continue
            middle = (first + last) // 2
            fraction = sum(self.shares[first:middle]) / sum(self.shares[first:last])
            share = Fraction(fraction).limit_denominator(DENOMINATOR)
            before = places[at] * share.numerator // share.denominator
            left = (places[at] + 1) * share.numerator // share.denominator > before
            places[at] = np.where(left, before, places[at] - before)
            parts += [(first, middle, at[left]), (middle, last, at[~left])]
        return datasets, places

    def _epoch(self, dataset: int, epoch: int) -> NDArray[np.int64]:
        if (dataset, epoch) not in self._epochs:
            # A stretch may reach over the end of an epoch, so the one before stays.
            self._epochs = {
                key: order for key, order in self._epochs.items() if key[0] != dataset or key[1] == epoch - 1
            }
            blocks, name = self.blocks[dataset], self.names[dataset]
            self._epochs[dataset, epoch] = (
                epoch_permutation(self.sizes[dataset], self.seed, epoch, name)
                if blocks is None
                else blockwise_permutation(blocks, self.seed, epoch, name)
            )
        return self._epochs[dataset, epoch]


def epoch_permutation(samples: int, seed: int, epoch: int, name: str = "") -> NDArray[np.int64]:
    """The permutation of one epoch of the data set `name`."""
    return torch.randperm(samples, generator=_generator("order", seed, epoch, name)).numpy()


def blockwise_permutation(blocks: Sequence[int], seed: int, epoch: int, name: str = "") -> NDArray[np.int64]:
    """A permutation that goes through one block after the other, in an order of its own, shuffled within."""
    first = np.concatenate([[0], np.cumsum(blocks)])
    generator = _generator("blocks", seed, epoch, name)
    order = torch.randperm(len(blocks), generator=generator).tolist()
    shuffled = [first[block] + torch.randperm(blocks[block], generator=generator).numpy() for block in order]
    return np.concatenate(shuffled)


def _generator(what: str, seed: int, epoch: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{what} {seed} {epoch}{f' {name}' if name else ''}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
