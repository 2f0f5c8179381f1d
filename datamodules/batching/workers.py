"""Worker processes that read ahead: they end when their loop ends, and never keep this process from ending.

Workers ignore the signals that stop a job, because the current step may still need their batches. Python's exit handler
would send them one of these signals, then wait for them without a limit. Therefore two things end them: the loop that
reads them, whatever still refers to its iterator, and the exit of this process.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

END_SECONDS = 2.0
"""Time in which workers may end by themselves; then they are killed, as where a sample takes long."""
_BEFORE_JOINS = 100
"""Priority of a finalizer that multiprocessing runs at exit before it waits for child processes."""


@contextmanager
def read_ahead(dataset: Dataset[Any], workers: int, keys: Iterable[Any] | None = None) -> Iterator[Iterator[Any]]:
    """Yields an iterator over the items of a dataset; its workers have ended when the context ends.

    Args:
        dataset: maps a key to an item, or yields items by itself.
        workers: processes that read; 0 reads in this one.
        keys: the keys of the items, in order; None for a dataset that yields items by itself.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_begin_worker,
        # Without one of its own a loader draws from torch's global stream, and a resumed run would draw otherwise.
        generator=torch.Generator(),
    )
    if workers:
        _kill_workers_at_exit(os.getpid())
    items = iter(loader)
    try:
        yield items
    finally:
        _end(items)


def _begin_worker(worker: int) -> None:
    """Makes a worker ignore the signals that stop a job, and end with this process.

    torch's workers look for their parent only between two batches.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end(items: Any) -> None:
    """Ends the workers behind a loader's iterator, which has none if this process reads."""
    workers: Sequence[BaseProcess] = getattr(items, "_workers", ())
    if not workers:
        return
    limit = threading.Timer(END_SECONDS, _kill, [workers])
    limit.daemon = True
    limit.start()
    try:
        with suppress(RuntimeError):  # of torch, about a worker that was killed
            items._shutdown_workers()
    finally:
        limit.cancel()
        _kill(workers)


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()


@cache
def _kill_workers_at_exit(own_process: int) -> None:
    """Has the workers killed when this process ends; a forked process asks for its own."""
    Finalize(None, _kill_workers, exitpriority=_BEFORE_JOINS)


def _kill_workers() -> None:
    """Kills the daemonic child processes of this one: the workers of any loader."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for a worker that was killed
    _kill([child for child in multiprocessing.active_children() if child.daemon])


def _as_is(value: Any) -> Any:
    """Returns `value` unchanged: the collate function where the dataset returns whole batches."""
    return value
