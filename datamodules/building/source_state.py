"""The state of a source's files, which a manifest keeps, so that the next build notices what has changed since.

Content counts, not times: a copied file is the same. Files with more than WHOLE_BYTES together are read at PLACES
blocks, as content_hash.py does; of the images in a folder with more, only names and sizes count.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.images.decoding import EXTENSIONS
from datamodules.sources.base import Inputs
from datamodules.storage.content_hash import PLACES, WHOLE_BYTES, hash_file
from fvl_lightning.core.errors import DataError, os_error_in_words

_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)

State = Mapping[str, Any]
"""{file: {"bytes": its size, "hash": of its content}}, and likewise the folder of images, with its number of "images".

A dataset of the hub has {address: {"commit": its hash}}.

Empty for a source that names no files.
"""


def state_of(inputs: Inputs) -> State:
    """Returns the state of the files of a source.

    Raises:
        DataError: the folder of images cannot be read, or a file vanished meanwhile.
    """
    try:
        sizes = {str(path): path.stat().st_size for path in inputs.files}
        places = None if sum(sizes.values()) <= WHOLE_BYTES else max(1, PLACES // len(sizes))
        state: dict[str, Any] = {
            path: {"bytes": size, "hash": _hash(path, size, places)} for path, size in sizes.items()
        }
        if inputs.images is not None:
            state[f"{inputs.images}/"] = _images(inputs.images, inputs.links)
        state |= {address: {"commit": commit} for address, commit in inputs.commits.items()}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {os_error_in_words(error)}") from None
    return state


def read_state(fields: Mapping[str, Any]) -> State:
    """Returns the state in a JSON object; TypeError, ValueError or AttributeError where it has another form."""
    return {
        name: {key: str(value) if key in ("hash", "commit") else int(value) for key, value in entry.items()}
        for name, entry in fields.items()
    }


def commits_of(state: State) -> dict[str, str]:
    """Returns {address: commit} of the datasets of the hub in a state."""
    return {name: str(entry["commit"]) for name, entry in state.items() if "commit" in entry}


def at_commits_of(before: State, now: State) -> State:
    """Returns a state with the commits of an earlier one: what a build began with is still there, or cannot be read."""
    pinned = commits_of(before)
    return {name: {"commit": pinned[name]} if name in pinned else entry for name, entry in now.items()}


def changes(before: State, now: State) -> str:
    """Returns what differs between two states, such as: a.json has changed (120 bytes then, 140 now); or nothing."""
    words = [
        *(f"{name} is gone" for name in before.keys() - now.keys()),
        *(f"{name} is new" for name in now.keys() - before.keys()),
        *(_change(name, before[name], now[name]) for name in before.keys() & now.keys() if before[name] != now[name]),
    ]
    first, *others = sorted(words) or [""]
    return f"{first}, and {len(others)} more differ" if others else first


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if "commit" in before and "commit" in now:
        return f"{name} has changed (commit {before['commit'][:12]} then, {now['commit'][:12]} now)"
    for unit in ("images", "bytes"):
        if before.get(unit) != now.get(unit):
            return f"{name} has changed ({before.get(unit):,} {unit} then, {now.get(unit):,} now)"
    return f"{name} has changed (other content of the same size)"


def _images(folder: Path, links: Sequence[str]) -> dict[str, Any]:
    """Returns the number of images under a folder, their bytes, and a hash of names, sizes and contents."""
    linked = [os.path.realpath(os.path.expanduser(link)) for link in links]
    images = sorted(_walk(str(folder), [os.path.realpath(folder), *linked], linked))
    total = sum(size for _, size in images)
    whole = total <= WHOLE_BYTES and len(images) <= PLACES
    digest = hashlib.sha256()
    for path, size in images:
        content = _hash(path, size, None) if whole else ""
        digest.update(f"{os.path.relpath(path, folder)}\0{size} {content}\n".encode(errors="surrogateescape"))
    return {"images": len(images), "bytes": total, "hash": digest.hexdigest()}


def _walk(folder: str, allowed: Sequence[str], links: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yields path and size of the images under a folder, following links as read_images does.

    Args:
        folder: the folder.
        allowed: resolved folders that links to files may lead into.
        links: resolved folders of which linked folders are entered; no others, so that none leads in a circle.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            target = os.path.realpath(entry.path) if entry.is_symlink() else ""
            if entry.is_dir(follow_symlinks=False):
                with suppress(PermissionError):
                    yield from _walk(entry.path, allowed, links)
            elif target and entry.is_dir():
                if _lies_in(target, links):
                    yield from _walk(target, allowed, [])
            elif (
                entry.name.lower().endswith(_SUFFIXES) and entry.is_file() and (not target or _lies_in(target, allowed))
            ):
                yield entry.path, entry.stat().st_size


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    return any(os.path.commonpath([folder, path]) == folder for folder in folders)


def _hash(path: str, size: int, places: int | None) -> str:
    """Returns the hash of a file's content; of one that cannot be read, whose rows are refused, a word."""
    try:
        return hash_file(path, size, places)
    except DataError:
        return "unreadable"
