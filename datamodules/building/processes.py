"""Reads and checks the chunks of a source in several processes, returned in order and with bounded memory.

At most twice as many chunks as processes are in progress. A small finished chunk comes back through a pipe, a large
one in a file of the work folder, so that memory depends neither on the number of chunks nor on their size.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import IO, Any

from datamodules.building.row_to_sample import BuiltSample, Outcome, prepare_chunk
from datamodules.sources.base import Ignored, Refusal, Source
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.plugins import import_plugin

PIPED = 32 * 2**20
"""Largest number of bytes of a chunk that comes back through the pipe."""

CHUNK_FILES = "chunk-"
"""First characters of the names of chunk files in the work folder."""

Job = tuple[int, Any]
"""A chunk with its number."""
Outcomes = Iterator[Outcome]
_Packed = Refusal | Ignored | tuple[str, int, int, tuple[str, ...], float]


@dataclass(frozen=True)
class _Prepared:
    """A chunk as a process returns it: the outcome of each row, and the bytes of all samples, concatenated.

    Among the rows, a sample is (split, images, bytes, unused, place).
    """

    rows: list[_Packed]
    members: bytes | Path

    def outcomes(self) -> Outcomes:
        file: IO[bytes] = self.members.open("rb") if isinstance(self.members, Path) else BytesIO(self.members)
        with file:
            for row in self.rows:
                if isinstance(row, tuple):
                    split, images, size, unused, place = row
                    yield BuiltSample(split, images, file.read(size), unused, place)
                else:
                    yield row

    def remove(self) -> None:
        if isinstance(self.members, Path):
            self.members.unlink(missing_ok=True)


def prepare_all(
    source: Source,
    jobs: Iterable[Job],
    splits: Mapping[str, float],
    processes: int,
    work: Path,
    plugins: Sequence[str] = (),
) -> Generator[tuple[int, Outcomes], None, None]:
    """Yields number and outcomes of every chunk, in the order of `jobs`; consume each before asking for the next.

    Args:
        processes: their number; with 1 this process does the work.
        work: a folder for chunks that are too large for a pipe.
        plugins: modules that a process must import before it can load the source.

    Raises:
        DataError: the source raised it, or a process was killed.
    """
    if processes == 1:
        for number, chunk in jobs:
            yield number, prepare_chunk(source, number, chunk, splits)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    # Pickled here: the classes may exist only after the plugins are imported.
    payload = pickle.dumps((type(source), source.config))
    pool = ProcessPoolExecutor(processes, context, _start, (payload, dict(splits), work, list(plugins), stop))
    jobs, pending = iter(jobs), deque[tuple[int, Future[_Prepared]]]()
    try:
        while True:
            for number, chunk in islice(jobs, 2 * processes - len(pending)):
                pending.append((number, pool.submit(_prepare, number, chunk)))
            if not pending:
                return
            number, future = pending.popleft()
            prepared = future.result()
            yield number, prepared.outcomes()
            prepared.remove()
    except BrokenProcessPool:
        reason = "a process that reads and checks was killed, perhaps for want of memory"
        raise DataError(f"{reason}; use fewer processes") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Worker:
    source: Source
    splits: Mapping[str, float]
    work: Path
    stop: Event


_worker: _Worker | None = None


def _start(payload: bytes, splits: Mapping[str, float], work: Path, plugins: Sequence[str], stop: Event) -> None:
    """Prepares a worker process."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for plugin in plugins:
        import_plugin(plugin, Path())
    kind, config = pickle.loads(payload)
    _worker = _Worker(kind(config), splits, work, stop)


def _end_with_parent() -> None:
    """Ends this process with its parent; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _prepare(number: int, chunk: Any) -> _Prepared:
    assert _worker is not None
    rows: list[_Packed] = []
    held, path = BytesIO(), _worker.work / f"{CHUNK_FILES}{number:08d}"
    file: IO[bytes] = held
    try:
        for outcome in prepare_chunk(_worker.source, number, chunk, _worker.splits):
            if _worker.stop.is_set():
                break
            if not isinstance(outcome, BuiltSample):
                rows.append(outcome)
                continue
            if file is held and held.tell() + len(outcome.members) > PIPED:
                file = path.open("wb")
                file.write(held.getbuffer())
                held = BytesIO()
            file.write(outcome.members)
            rows.append((outcome.split, outcome.images, len(outcome.members), outcome.unused, outcome.place))
        return _Prepared(rows, path if file is not held else held.getvalue())
    finally:
        file.close()
