"""Finds the files of a recipe, whose rows become samples, and opens them."""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from datamodules.sources.base import Refusal
from fvl_lightning.core.errors import DataError, nearest

MAX_ROW_BYTES = 16 * 2**20
"""Limit of the text of one row; a longer one is not read."""
ROWS_PER_CHUNK = 64
"""Rows of text in a chunk: enough to be worth a message between processes, few enough for memory with their images."""

Item = TypeVar("Item")


def check_file(file: Any) -> None:
    """Raises ValueError where the field `file` of a Config is neither a text nor a list of texts."""
    entries = file if isinstance(file, list) else [file]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise ValueError(f"file: expected a path, a glob such as data/*.json, or a list of them, found {file!r}")


def find_files(file: str | list[str], suffixes: Sequence[str]) -> list[Path]:
    """Returns the files of the field `file`: entries in the given order, the matches of a glob sorted by name.

    Args:
        file: the field: a path, a glob or a list of them.
        suffixes: suffixes of such files, for the advice about a folder.

    Raises:
        DataError: an entry that is no file and matches none.
    """
    found: list[Path] = []
    for entry in [file] if isinstance(file, str) else file:
        path = Path(entry)
        # A file name may contain brackets, so an existing path is never read as a glob.
        matches = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(entry, recursive=True))
        files = [match for match in matches if match.is_file()]
        if path.is_dir() and not files:
            existing = [suffix for suffix in suffixes if any(path.glob(f"*{suffix}"))]
            raise DataError(f"{entry} is a folder: name the files in it, such as '{path}/*{(existing or suffixes)[0]}'")
        if not files:
            raise DataError(f"no file {entry}{nearest_path(path)}")
        found += files
    return found


def sort_out(paths: Iterable[Path], check: Callable[[Path], None]) -> list[Path | Refusal]:
    """Returns each file, or its Refusal where `check` raises DataError; raises the first error if all files fail."""
    found: list[Path | Refusal] = []
    errors: list[DataError] = []
    for path in paths:
        try:
            check(path)
            found.append(path)
        except DataError as error:
            errors.append(error)
            found.append(Refusal("unreadable file", str(error), path.name))
    if errors and len(errors) == len(found):
        raise errors[0]
    return found


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file for reading bytes; DataError where it cannot be read."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def groups(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Yields groups of `size` consecutive items; the last group may be smaller."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def nearest_path(path: Path) -> str:
    """Returns advice with the name that is closest to that of an absent file or folder."""
    siblings = sorted(sibling.name for sibling in path.parent.iterdir()) if path.parent.is_dir() else []
    close = nearest(path.name, [sibling for sibling in siblings if sibling != path.name])
    if close:
        return f"; did you mean '{path.parent / close}'?"
    return "" if path.parent.is_dir() else f": there is no folder {path.parent}"
