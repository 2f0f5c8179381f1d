"""Maps a function over items in worker processes, with the results in order."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from torch.utils.data import Dataset

from datamodules.batching.workers import read_ahead
from fvl_lightning.core.errors import DataError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """Yields `work(item)` for every item, in order; `work` and its results must be picklable.

    Args:
        work: the function.
        items: its arguments.
        processes: number of worker processes; None for one per core, 1 for none besides this process.

    Raises:
        UserError: `work` raised it.
        DataError: a worker process was killed.
    """
    processes = processes or os.cpu_count() or 1
    workers = min(processes, len(items))
    with ExitStack() as reading:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more processes than cores, on request
            results = reading.enter_context(read_ahead(_Work(work), workers if workers > 1 else 0, items))
        while True:
            try:
                result = next(results, None)
            except RuntimeError as error:
                if "exited unexpectedly" not in str(error):
                    raise
                raise DataError("a worker process was killed, perhaps out of memory; use fewer --processes") from None
            if result is None:
                return
            if isinstance(result[0], UserError):
                raise result[0]
            yield result[0]


class _Work(Dataset[tuple[Any]]):
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __getitem__(self, item: Any) -> tuple[Any]:
        try:
            return (self.work(item),)
        except UserError as error:
            # It is returned rather than raised: torch turns an exception in a worker into pages of traceback.
            return (error,)
