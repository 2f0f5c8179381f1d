"""The shards that a process keeps open; never more than its limit on open files allows.

The limit holds for the process, so all its stores share this pool; in a mixture, every dataset has two stores. A forked
process has its own copy; the files that it inherits count against its own limit.
"""

import os
from collections.abc import Callable
from threading import RLock

from fvl_lightning.core.errors import is_lack_of_files

MOST_OPEN = 256
"""Largest number of local shards that are kept open, whatever the limit is."""

MOST_COPIES = 8
"""Largest number of open copies of remote shards: an evicted copy occupies the disk until it is closed."""

_SHARE = 4
"""Shards use at most one of this many files that a process may open; workers and libraries need the others."""

Key = tuple[object, int]
"""The owner of a file, and the file's number there."""


class OpenFile:
    """A descriptor that is closed with the last reference to it, so that a thread may still read a dropped file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


_local: dict[Key, OpenFile] = {}
_copies: dict[Key, OpenFile] = {}
"""The open files, the most recently used one last."""

# Held for changes only, not while a file is opened. Re-entrant, since garbage collection may call `release` meanwhile.
_lock = RLock()
# A fork waits until no thread changes the dicts, since the child would inherit the lock locked.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def most_open() -> int:
    """Returns how many shards of this machine the process keeps open."""
    import resource  # Windows has no such module, where the package can still be imported

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, limit // _SHARE))


def opened(key: Key, open_it: Callable[[], int], is_copy: bool) -> OpenFile:
    """Returns the file kept under `key`; opens it if there is none, and closes the least recently used ones.

    Args:
        open_it: returns a new descriptor.
        is_copy: whether it is the copy of a remote shard, of which fewer are kept.

    Raises:
        OSError: it cannot be opened, even after all other files that are kept were closed.
    """
    kept, most = (_copies, MOST_COPIES) if is_copy else (_local, most_open())
    with _lock:
        file = kept.pop(key, None)
        if file is not None:
            kept[key] = file
            return file
    try:
        file = OpenFile(open_it())
    except OSError as error:
        if not is_lack_of_files(error):
            raise
        with _lock:
            _local.clear()
            _copies.clear()
        file = OpenFile(open_it())
    with _lock:
        kept[key] = file
        for oldest in list(kept)[: max(0, len(kept) - most)]:
            kept.pop(oldest, None)
    return file


def release(owner: object) -> None:
    """Closes the files that `owner` opened."""
    with _lock:
        for kept in (_local, _copies):
            for key in [key for key in list(kept) if key[0] is owner]:
                kept.pop(key, None)
