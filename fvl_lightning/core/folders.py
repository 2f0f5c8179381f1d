"""Folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
        os.rename(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
