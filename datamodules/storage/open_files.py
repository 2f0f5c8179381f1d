"""The shards that a process keeps open; never more than its limit on open files allows.

The limit holds for the process, so all its stores share this pool; in a mixture, every dataset has two stores. A forked
process has its own copy; the files that it inherits count against its own limit.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

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


# Without a lock, which a forked process could inherit locked: each operation on a dict is atomic.
_local: OrderedDict[Key, OpenFile] = OrderedDict()
_copies: OrderedDict[Key, OpenFile] = OrderedDict()


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
    kept = _copies if is_copy else _local
    file = kept.get(key)
    if file is not None:
        with suppress(KeyError):  # another thread has just dropped it
            kept.move_to_end(key)
        return file
    try:
        file = OpenFile(open_it())
    except OSError as error:
        if not is_lack_of_files(error):
            raise
        _local.clear()
        _copies.clear()
        file = OpenFile(open_it())
    kept[key] = file
    while len(kept) > (MOST_COPIES if is_copy else most_open()):
        with suppress(KeyError):
            kept.popitem(last=False)
    return file


def release(owner: object) -> None:
    """Closes the files that `owner` opened."""
    for kept in (_local, _copies):
        for key in [key for key in list(kept) if key[0] is owner]:
            kept.pop(key, None)
