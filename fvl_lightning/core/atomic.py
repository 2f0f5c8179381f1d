"""Folders that appear whole or not at all, and the names that they may have."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from pathlib import Path, PurePosixPath

from fvl_lightning.core.errors import ConfigError, DataError

NAME_BYTES = 200
"""The longest part of a name; file systems take 255, and a run's number and a draft's ending come behind it."""


def check_folder_name(name: str, key: str) -> None:
    """ValueError unless `name` is a folder below another one, such as lora[r=8] or sweep/b.

    Args:
        key: the field that holds it, as the message calls it.
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
def atomic_directory(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, renamed to it at the end; removed on any error.

    Raises:
        ConfigError: `out` exists.
        DataError: it cannot be made.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already, name a folder that does not")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be made ({error.strerror})") from None
    try:
        yield beside
        beside.chmod(0o755)
        share_file_modes(beside)
        os.rename(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def share_file_modes(folder: Path) -> None:
    """Lets those read all files of a folder who may read one: safetensors makes its own for their owner alone."""
    files = [path for path in folder.iterdir() if path.is_file()]
    widest = reduce(or_, (file.stat().st_mode & 0o044 for file in files), 0)
    for file in files:
        file.chmod(file.stat().st_mode | widest)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A new file's name beside `path`, renamed to it at the end; removed, with `path` untouched, on any error."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o644)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
