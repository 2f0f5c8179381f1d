"""Locks that end with the process that has them, however it ends, even if processes that it forked survive."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fvl_lightning.core.errors import DataError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class HeldError(DataError):
    """Another process has the lock."""


@contextmanager
def held(path: Path, message: str, patience: float = 0.0) -> Iterator[None]:
    """Has the lock of a file, which is made if it is not there, and writes the id of this process into it.

    Where the file system has no locks, nothing is locked.

    Args:
        path: the file; no process may replace it.
        message: the sentence of the error, to which the id of the other process is added.
        patience: seconds to wait for the lock.

    Raises:
        HeldError: another process has the lock.
        OSError: the file cannot be written.
    """
    with path.open("a+") as file:
        end = time.monotonic() + patience
        while _lock(file) is False:
            if time.monotonic() > end:
                raise HeldError(message + _holder(path))
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Returns whether another process has the lock of a file; False where that cannot be found out."""
    return _try(path) is False


def is_free(path: Path) -> bool:
    """Returns whether no process has the lock of a file; False where that cannot be found out.

    This process must not have it: it would lose it.
    """
    return _try(path) is True


def _try(path: Path) -> bool | None:
    try:
        with path.open("r+") as file:
            return _lock(file)
    except OSError:
        return None


def _lock(file: IO[str]) -> bool | None:
    """Locks a file; returns False if another process has the lock, and None where the file system has no locks."""
    import fcntl  # Windows does not have this module, but can import the package

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.debug("%s cannot be locked (%s)", file.name, error.strerror)
        return None
    return True


def _holder(path: Path) -> str:
    """Returns " (process 1234)", or nothing where the id is not known."""
    try:
        number = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return f" (process {number})" if number.isdecimal() else ""
