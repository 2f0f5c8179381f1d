"""Finds the files of a recipe, and reads the images that rows name, never from outside their folder."""

import errno
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from datamodules.sources.base import Refusal
from datamodules.sources.refusals import Refused
from fvl_lightning.core.errors import DataError, nearest

MAX_IMAGE_BYTES = 256 * 2**20
"""Limit of the encoded images of one row together; larger ones are not read."""
MAX_ROW_BYTES = 16 * 2**20
"""Limit of the text of one row; a longer one is not read."""
ROWS_PER_CHUNK = 64
"""Rows of text in a chunk: enough to be worth a message between processes, few enough for memory with their images."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)

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
            raise DataError(f"no file {entry}{_near(path)}")
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


def find_folders(images: str, links: Iterable[str]) -> None:
    """Checks that the fields `images` and `links` of a Config name folders; DataError otherwise."""
    for name in (images, *map(os.path.expanduser, links)):
        find_folder(name)


def find_folder(name: str) -> Path:
    """Returns the folder `name`; DataError where it does not exist."""
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(f"no folder {name} with images{_near(folder)}")
    return folder


def open_file(path: str | Path) -> BinaryIO:
    """Opens a file for reading bytes; DataError where it cannot be read."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_images(folder: Path, names: Iterable[str], links: Sequence[str] | None = None) -> tuple[bytes, ...]:
    """Reads the images that a row names, relative to `folder`.

    Symbolic links may lead into `folder` or into `links`, and nowhere else: whoever packed `folder` may have put a link
    to / into it.

    Args:
        folder: the folder that names are relative to.
        names: relative paths of the images.
        links: the folders of the field `source.links`; None where the source has no such field.

    Raises:
        Refused: "unsafe path" for a path that leads out of the folder (absolute, `..`, or through a link), "missing
            image" for one that does not exist, "unreadable image" for disk and permission errors, "image too large"
            where the images exceed MAX_IMAGE_BYTES together.
    """
    images: list[bytes] = []
    room = MAX_IMAGE_BYTES
    for name in names:
        images.append(_read_image(folder, name, room, links))
        room -= len(images[-1])
    return tuple(images)


def check_size(images: Iterable[bytes]) -> None:
    """Raises Refused where the images of a row exceed MAX_IMAGE_BYTES together."""
    if (total := sum(len(image) for image in images)) > MAX_IMAGE_BYTES:
        raise Refused("image too large", f"{total} bytes, at most {MAX_IMAGE_BYTES} are read")


def groups(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Yields groups of `size` consecutive items; the last group may be smaller."""
    iterator = iter(items)
    while group := tuple(islice(iterator, size)):
        yield group


def _read_image(folder: Path, name: str, room: int, links: Sequence[str] | None) -> bytes:
    if os.path.isabs(name) or ".." in name.split("/"):
        raise Refused("unsafe path", name)
    try:
        path = os.path.realpath(os.path.join(folder, name))
        if not any(_lies_in(allowed, path) for allowed in _allowed(folder, links or ())):
            advice = "" if links is None else "; add a folder that contains it to source.links to follow it"
            raise Refused("unsafe path", f"{name} leads out of {folder} through a link, to {path}{advice}")
        with open(path, "rb", opener=_opener) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused("missing image", f"{name} is not a file")
            if status.st_size > room:
                raise Refused("image too large", f"{name}: {status.st_size} bytes of {MAX_IMAGE_BYTES} in all")
            return file.read(status.st_size)
    except ValueError:  # a NUL, or text that the file system's encoding does not have
        raise Refused("unsafe path", repr(name)) from None
    except OSError as error:
        reason = "missing image" if error.errno in _ABSENT else "unreadable image"
        raise Refused(reason, f"{name}: {error.strerror}") from None


def _allowed(folder: Path, links: Sequence[str]) -> Iterator[str]:
    """Yields the resolved folders that an image may lie in."""
    yield os.path.realpath(folder)
    yield from (os.path.realpath(os.path.expanduser(link)) for link in links)


def _lies_in(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def _opener(path: str, flags: int) -> int:
    # It neither follows a link that has just replaced the file, nor waits for the writer of a pipe.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _near(path: Path) -> str:
    siblings = sorted(sibling.name for sibling in path.parent.iterdir()) if path.parent.is_dir() else []
    close = nearest(path.name, [sibling for sibling in siblings if sibling != path.name])
    if close:
        return f"; did you mean '{path.parent / close}'?"
    return "" if path.parent.is_dir() else f": there is no folder {path.parent}"
