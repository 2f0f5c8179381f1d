"""Folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from pathlib import Path

from fvl_lightning.core.errors import ConfigError, DataError


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
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
        readable(beside)
        os.rename(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def readable(folder: Path) -> None:
    """Lets those read all files of a folder who may read one: safetensors makes its own for their owner alone."""
    files = [path for path in folder.iterdir() if path.is_file()]
    widest = reduce(or_, (file.stat().st_mode & 0o044 for file in files), 0)
    for file in files:
        file.chmod(file.stat().st_mode | widest)
