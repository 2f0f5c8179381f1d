"""Reads the images that rows name, never from outside their folder."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from datamodules.sources.refusals import Refused
from datamodules.sources.row_files import nearest_path
from fvl_lightning.core.errors import DataError

MAX_IMAGE_BYTES = 256 * 2**20
"""Limit of the encoded images of one row together; larger ones are not read."""

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def find_folders(images: str, links: Iterable[str]) -> None:
    """Checks that the fields `images` and `links` of a Config name folders; DataError otherwise."""
    for name in (images, *map(os.path.expanduser, links)):
        find_folder(name)


def find_folder(name: str) -> Path:
    """Returns the folder `name`; DataError where it does not exist."""
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(f"no folder {name} with images{nearest_path(folder)}")
    return folder


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
