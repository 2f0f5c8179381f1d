"""Atomic writes of files and directories, and checks of folder names.

Every file of the project is written through this module; tests/core/test_atomic.py lists the few streams that are not.
A temporary path lies in the folder of the file it becomes. Its name begins with a dot and ends in random digits, so
that no pattern such as *.tar or *.json finds it. Permissions are those that the umask leaves.

Beside a temporary path lies a file that its process has locked. If the process is killed, the lock ends with it, and
whoever writes into the folder next removes the path.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from operator import or_
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fvl_lightning.core.errors import ConfigError, DataError, full_disk
from fvl_lightning.core.locks import held, is_free

logger = logging.getLogger(__name__)

NAME_BYTES = 200
"""The longest part of a name: file systems take 255, and a run's number or a temporary ending may follow."""


def check_folder_name(name: str, key: str) -> None:
    """Checks that `name` is a folder below another one, such as lora[r=8] or sweep/b.

    Args:
        key: the field that holds it, for the message.

    Raises:
        ValueError: it is not.
    """
    if not name.isprintable():
        raise ValueError(f"{key} must be of printable characters, not {name!r}")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"{key} must be a folder inside `output`, which {name} is not; set `output` instead")
    if not name.strip() or str(PurePosixPath(name)) != name or name == ".":
        raise ValueError(f"{key} must be a name, or names with / between them such as sweep/b, not {name!r}")
    long = [part for part in name.split("/") if len(os.fsencode(part)) > NAME_BYTES]
    if long:
        raise ValueError(f"{key} is too long for a folder: at most {NAME_BYTES} bytes, not {len(os.fsencode(long[0]))}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the temporary path of a new, empty file, which replaces `path` at the end.

    On any error the new file is removed, and `path` stays as it was.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    try:
        with _temporary(path) as tmp_path:
            mode = _create(tmp_path)
            yield tmp_path
            tmp_path.chmod(mode)  # some libraries replace the file by one that only its owner may read
            os.replace(tmp_path, path)
    except OSError as error:
        if error.filename is None or _is_temporary(Path(os.fsdecode(error.filename)), path):
            error.filename = str(path)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces `path` by a file of this text, in UTF-8.

    Raises:
        DataError: it cannot be written; what was there is kept.
    """
    try:
        with atomic_write(path) as tmp_path:
            tmp_path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from None


@contextmanager
def atomic_directory(out: Path, exist_ok: bool = False) -> Iterator[Path]:
    """Yields a new folder, which becomes `out` at the end; on any error it is removed.

    Args:
        exist_ok: keeps an `out` that another process has made meanwhile, and drops the new folder.

    Raises:
        ConfigError: `out` exists, without `exist_ok`.
        DataError: it cannot be made, or the disk is full.
    """
    if out.exists() and not exist_ok:
        raise ConfigError(f"{out} exists already, name a folder that does not")
    with temporary_directory(out) as tmp_path:
        yield tmp_path
        share_file_modes(tmp_path)
        try:
            os.rename(tmp_path, out)
        except OSError:
            if not (exist_ok and out.is_dir()):
                raise


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, with a name like it; it is removed at the end.

    Raises:
        DataError: it cannot be made, or the disk is full.
    """
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as tmp_path:
            tmp_path.mkdir()
            made = True
            yield tmp_path
    except Exception as error:
        if not made and isinstance(error, OSError):
            raise DataError(f"{path} cannot be made ({error.strerror})") from None
        reason = full_disk(error, path.parent)
        if reason is None:
            raise
        raise DataError(f"{path} cannot be written ({reason})") from None


def rename_into_place(tmp_path: Path, path: Path) -> None:
    """Renames a finished file or folder to `path`; an earlier file there is replaced.

    For what `atomic_write` cannot do: the temporary path has a fixed name, so that other processes write to it as well
    or a restart finds it again.
    """
    os.replace(tmp_path, path)


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Yields `path` opened for writing; its bytes are on the disk at the end, before anything is renamed."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def share_file_modes(folder: Path) -> None:
    """Makes all files of a folder readable for whoever may read one: safetensors writes for their owner alone."""
    files = [path for path in folder.iterdir() if path.is_file()]
    widest = reduce(or_, (file.stat().st_mode & 0o044 for file in files), 0)
    for file in files:
        file.chmod(file.stat().st_mode | widest)


def remove_abandoned(folder: Path) -> None:
    """Removes temporary files and folders in `folder` whose processes were killed; never those of a living process."""
    with suppress(OSError):
        for name in filter(_LOCK_NAME.fullmatch, os.listdir(folder)):
            if name not in _own_locks and is_free(folder / name):
                tmp_path = folder / name.removesuffix(LOCK)
                if tmp_path.exists():
                    logger.info("removing %s, which a killed process has left", tmp_path)
                _remove(tmp_path)
                (folder / name).unlink(missing_ok=True)


LOCK = ".lock"
"""Ending of the file beside a temporary path that its process has locked."""
_LOCK_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.lock", re.DOTALL)
_own_locks: set[str] = set()
"""Names of the locks of this process, which it must not try."""
_LOCK_SECONDS = 1.0
"""Patience with a process that looks for abandoned paths, and has found a lock before it was taken."""


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yields a new temporary path for what becomes `path`; what is there at the end is removed."""
    remove_abandoned(path.parent)
    tmp_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    lock = tmp_path.with_name(tmp_path.name + LOCK)
    _own_locks.add(lock.name)
    try:
        with held(lock, f"{path} is being written by another process", _LOCK_SECONDS):
            try:
                yield tmp_path
            finally:
                _remove(tmp_path)
                lock.unlink(missing_ok=True)
    finally:
        _own_locks.discard(lock.name)


def _is_temporary(found: Path, path: Path) -> bool:
    """Returns whether `found` is a temporary path for `path`, or its lock."""
    return found.parent == path.parent and found.name.startswith(f".{path.name}.")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _create(path: Path) -> int:
    """Creates an empty file and returns its permissions."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
