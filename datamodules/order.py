"""The order of samples: a pure function of (seed, epoch, position), the same for any number of ranks and workers."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """The samples of one rank's batch; `position` is the global count of samples once it is consumed.

    `supervised` is False for a row that only keeps a rank in step where the split has none left for it.
    """

    indices: tuple[int, ...]
    position: int
    supervised: bool = True


class GlobalOrder:
    """Which of `samples` samples stands at global position p: entry p mod samples of the permutation of its epoch."""

    def __init__(self, samples: int, seed: int) -> None:
        assert samples > 0
        self.samples, self.seed = samples, seed
        self._epochs: dict[int, list[int]] = {}

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.samples)
        if epoch not in self._epochs:
            # A batch may reach over the end of an epoch, so the one before stays.
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = epoch_permutation(self.samples, self.seed, epoch)
        return self._epochs[epoch][place]


def epoch_permutation(samples: int, seed: int, epoch: int) -> list[int]:
    """The permutation of one epoch."""
    digest = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(samples, generator=generator).tolist()


@dataclass(frozen=True)
class TrainRows:
    """Batches without end for one rank, from `position` on: rows [rank * b, (rank + 1) * b) of each global batch."""

    samples: int
    seed: int
    batch_size: int
    position: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Rows]:
        order = GlobalOrder(self.samples, self.seed)
        position = self.position
        while True:
            first = position + self.rank * self.batch_size
            position += self.world_size * self.batch_size
            yield Rows(tuple(order[p] for p in range(first, first + self.batch_size)), position)


@dataclass(frozen=True)
class ValidationRows:
    """One pass in order for one rank; all ranks get as many batches, the last of them smaller.

    A rank for which the last global batch has no row gets the split's first sample, not supervised: under sharding
    every rank must take part in every forward.
    """

    samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-self.samples // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Rows]:
        step = self.batch_size * self.world_size
        for start in range(0, self.samples, step):
            first = min(start + self.rank * self.batch_size, self.samples)
            indices = tuple(range(first, min(first + self.batch_size, self.samples)))
            position = min(start + step, self.samples)
            yield Rows(indices, position) if indices else Rows((0,), position, supervised=False)
