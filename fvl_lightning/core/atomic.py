"""Atomic writes of files and directories, and checks of folder names.

Every file of the project is written through this module; tests/core/test_atomic.py lists the few streams that are not.
A temporary path lies in the folder of the file it becomes. Its name begins with a dot and ends in random digits, so
that no pattern such as *.tar or *.json finds it. Permissions are those that the umask leaves.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fvl_lightning.core.errors import ConfigError, DataError

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
    tmp_path = _temporary(path)
    try:
        mode = _create(tmp_path)
        try:
            yield tmp_path
            tmp_path.chmod(mode)  # some libraries replace the file by one that only its owner may read
            os.replace(tmp_path, path)
        finally:
            tmp_path.unlink(missing_ok=True)
    except OSError as error:
        if error.filename == str(tmp_path):
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
        DataError: it cannot be made.
    """
    if out.exists() and not exist_ok:
        raise ConfigError(f"{out} exists already, name a folder that does not")
    tmp_path = _temporary(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tmp_path.mkdir()
    except OSError as error:
        raise DataError(f"{out} cannot be made ({error.strerror})") from None
    try:
        yield tmp_path
        share_file_modes(tmp_path)
        try:
            os.rename(tmp_path, out)
        except OSError:
            if not (exist_ok and out.is_dir()):
                raise
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _create(path: Path) -> int:
    """Creates an empty file and returns its permissions."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)
