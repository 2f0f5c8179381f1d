"""One function over many pieces of work, in worker processes, with the results in order."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from fvl_lightning.core.errors import DataError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """`work` of every item, in the order of the items; `work` and its results must be picklable.

    Args:
        processes: how many; None for one per core. With 1 all is done in this process.

    Raises:
        UserError: whatever `work` raises of that kind.
        DataError: a worker process was killed.
    """
    processes = processes or os.cpu_count() or 1
    workers = min(processes, len(items))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores: as was asked for
        loader: DataLoader[Any] = DataLoader(
            _Work(work),
            batch_size=None,
            sampler=items,
            num_workers=workers if workers > 1 else 0,
            collate_fn=_as_is,
        )
        results = iter(loader)
    while True:
        try:
            result = next(results, None)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise DataError("a worker process was killed, perhaps for want of memory; use fewer --processes") from None
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
            # As a value: torch would turn an exception raised in a worker into pages of traceback.
            return (error,)


def _as_is(result: Any) -> Any:
    return result
