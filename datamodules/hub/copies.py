"""Copies of files of the hub on this machine, for data that is read more than once."""

import hashlib
import logging
import os
from pathlib import Path

from filelock import FileLock

from datamodules.hub.address import HubFile
from datamodules.hub.requests import endpoint, read_range, size_of
from fvl_lightning.core.atomic import atomic_write
from fvl_lightning.core.errors import DataError, os_error_in_words

log = logging.getLogger(__name__)

_BLOCK = 2**25
"""Bytes that are asked for at once."""


def local_copy(file: HubFile) -> Path:
    """Returns a copy of a file, which is downloaded if there is none; the files of a commit never change.

    Copies lie in ~/.cache/fvl_lightning/hub until they are removed by hand. Their names are hashes, since the names on
    the hub are chosen by strangers.

    Raises:
        DataError: the hub cannot be reached, or refuses; or the disk has no space for the copy.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256("\n".join((endpoint(), file.dataset, file.commit, file.path)).encode()).hexdigest()[:32]
    path = caches / "fvl_lightning" / "hub" / f"{name}{Path(file.path).suffix}"
    size = size_of(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file() or path.stat().st_size != size:
                log.info("downloading %s (%d MB) to %s", file, size // 10**6, path.parent)
                with atomic_write(path) as tmp_path, tmp_path.open("wb") as copy:
                    for start in range(0, size, _BLOCK):
                        copy.write(read_range(file, start, min(size, start + _BLOCK)))
    except OSError as error:
        raise DataError(f"{path.parent} cannot hold a copy of {file}: {os_error_in_words(error)}") from None
    return path
