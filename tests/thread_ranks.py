"""Ranks that are threads of one process, for what ranks do together without a device."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fvl_lightning.training.distributed.process_group import Ranks


class Exchange:
    """The place where `count` threads lay down a value each, and read all of them."""

    def __init__(self, count: int) -> None:
        self._barrier, self._values = threading.Barrier(count, timeout=60), [None] * count

    def all(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """One of several ranks; an error of one ends in a broken barrier of the others."""

    exchange: Exchange = field(default_factory=lambda: Exchange(1))

    def broadcast_from_rank0(self, do: Callable[[], Any]) -> Any:
        return self.exchange.all(self.rank, do() if self.first else None)[0]

    def gather(self, do: Callable[[], Any]) -> list[Any]:
        return self.exchange.all(self.rank, do())

    @contextmanager
    def replica(self, module: Any, device: Any) -> Iterator[Any]:
        yield copy.deepcopy(self.exchange.all(self.rank, module)[0])


def on_ranks(count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` returns on each rank."""
    exchange = Exchange(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: work(ThreadRanks(rank, count, exchange=exchange)), range(count)))
