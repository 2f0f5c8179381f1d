"""Mixes datasets by shares in one global order of samples: a function of (seed, position), not of ranks or workers."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

DENOMINATOR = 2**20
"""Largest denominator of a mixture's shares, so that positions up to 2**43 stay exact."""


class GlobalOrder:
    """An endless sequence over the items of one or several datasets, which are numbered one dataset after the other.

    Each dataset is permuted anew in every epoch, and an item comes again only after all others of its dataset. Several
    datasets are interleaved so evenly that in any range of positions each has its share to within the logarithm of
    their number.

    Args:
        sizes: number of items of each dataset.
        seed: seed of the permutations.
        shares: share of each dataset in the mixture, in any unit; None for shares by size.
        names: name of each dataset; its order depends on its name, not on the other datasets.
        blocks: for a remote dataset, the number of items of each of its blocks; blocks are visited one after the other
            in random order, and shuffled within. None shuffles over the whole dataset.
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
        """Returns the items at the positions [start, stop)."""
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
        """Maps positions to (dataset, number of earlier items of that dataset) in closed form, by repeated halving.

        When two groups of datasets are interleaved, the first group, with the fraction w of their shares, gets
        floor(p * w) of the first p positions.
        """
        datasets = np.zeros(len(positions), dtype=np.int64)
        places = positions.copy()
        groups = [(0, len(self.sizes), np.arange(len(positions)))]
        while groups:
            first, last, at = groups.pop()
            if last - first == 1:
                datasets[at] = first
                continue
            middle = (first + last) // 2
            fraction = sum(self.shares[first:middle]) / sum(self.shares[first:last])
            share = Fraction(fraction).limit_denominator(DENOMINATOR)
            before = places[at] * share.numerator // share.denominator
            left = (places[at] + 1) * share.numerator // share.denominator > before
            places[at] = np.where(left, before, places[at] - before)
            groups += [(first, middle, at[left]), (middle, last, at[~left])]
        return datasets, places

    def _epoch(self, dataset: int, epoch: int) -> NDArray[np.int64]:
        if (dataset, epoch) not in self._epochs:
            # A range of positions may cross the end of an epoch, so the previous epoch's order is kept.
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
    """Returns the permutation [samples] of one epoch of the dataset `name`."""
    return torch.randperm(samples, generator=_generator("order", seed, epoch, name)).numpy()


def blockwise_permutation(blocks: Sequence[int], seed: int, epoch: int, name: str = "") -> NDArray[np.int64]:
    """Returns a permutation that visits the blocks one after the other in random order, and shuffles each block."""
    first = np.concatenate([[0], np.cumsum(blocks)])
    generator = _generator("blocks", seed, epoch, name)
    order = torch.randperm(len(blocks), generator=generator).tolist()
    shuffled = [first[block] + torch.randperm(blocks[block], generator=generator).numpy() for block in order]
    return np.concatenate(shuffled)


def _generator(purpose: str, seed: int, epoch: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{purpose} {seed} {epoch}{f' {name}' if name else ''}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
