"""The shards that a process keeps open, never more than its limit on open files allows.

The limit holds for the process, so its stores share what is kept here, however many there are: of a mixture every data
set has two. A process that was forked has its own copy; the files it inherits count against its own limit.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from fvl_lightning.core.errors import is_lack_of_files

MOST_OPEN = 256
"""No more shards of this machine are kept open, whatever the limit is."""

MOST_COPIES = 8
"""No more copies of remote shards: one that is evicted while it is open keeps its place on the disk."""

_SHARE = 4
"""One of so many files that a process may open is a shard; the others are left to worker processes and libraries."""

Key = tuple[object, int]
"""Who opened a file, and its number there."""


class OpenFile:
    """A descriptor that is closed with the last reference to it, so that a thread may still read what was dropped."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


# Without a lock, which a process that is forked could inherit locked: each step on a dict is whole by itself.
_local: OrderedDict[Key, OpenFile] = OrderedDict()
_copies: OrderedDict[Key, OpenFile] = OrderedDict()


def most_open() -> int:
    """Returns how many shards of this machine the process keeps open."""
    import resource  # Windows has no such module, where the package can still be imported

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if limit == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, limit // _SHARE))


def opened(key: Key, open_it: Callable[[], int], is_copy: bool) -> OpenFile:
    """Returns the file kept under `key`; opens it where there is none, and closes those used least recently.

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
