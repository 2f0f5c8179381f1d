"""The endless order of the shards of a data set, and how far a reader has got in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from datamodules.batching.mixture_order import epoch_permutation


@dataclass(frozen=True)
class ShardVisit:
    """One shard at its place in the endless order; `number` counts from 0 through all epochs."""

    number: int
    epoch: int
    shard: str


@dataclass(frozen=True)
class ShardOrder:
    """The shards of one data set without end: each once per epoch, in an order of its own for every epoch.

    Attributes:
        name: the dataset's name, "" if it is the only one; the order depends on it, not on the other sets.
        start: the number of the first visit.
    """

    shards: Sequence[str]
    seed: int
    name: str = ""
    start: int = 0

    def visits(self) -> Iterator[ShardVisit]:
        """Yields the visits from `start` on."""
        first, skip = divmod(self.start, len(self.shards))
        for epoch in count(first):
            order = epoch_permutation(len(self.shards), self.seed, epoch, self.name).tolist()
            for place in range(skip if epoch == first else 0, len(order)):
                yield ShardVisit(epoch * len(order) + place, epoch, self.shards[order[place]])


@dataclass(frozen=True)
class SplitByRank:
    """Gives every rank its own shards, as webdataset's split_by_node does.

    The rank is that of the data context, so that a process outside a process group can read any rank's shards.
    """

    rank: int
    world_size: int

    def __call__(self, visits: Iterator[ShardVisit]) -> Iterator[ShardVisit]:
        """Yields every world_size-th visit."""
        return islice(visits, self.rank, None, self.world_size)


class Passed:
    """Keeps track of the shard visits that a reader has passed: none of their samples is still to come.

    Args:
        first: the number of the reader's first visit.
        stride: how many readers there are; each takes every stride-th visit.
    """

    def __init__(self, first: int, stride: int) -> None:
        self._next, self._stride = first, stride
        self._left: dict[int, int] = {}

    @property
    def first_unfinished(self) -> int:
        """The number of the reader's first visit that is not passed."""
        return next(iter(self._left), self._next)

    def open(self, visit: ShardVisit) -> None:
        """Notes that a shard is being read."""
        self._left[visit.number] = 1
        self._next = visit.number + self._stride

    def add(self, visit: ShardVisit) -> None:
        """Notes one more sample of a shard."""
        self._left[visit.number] += 1

    def finish(self, visit: ShardVisit) -> None:
        """Notes that one sample of a shard was handed out or refused, or that the shard was read to its end."""
        self._left[visit.number] -= 1
        if not self._left[visit.number]:
            del self._left[visit.number]
