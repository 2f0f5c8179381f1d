"""Resolves names of shards: a folder, a glob, braces, URLs, or a root and a split."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate
from glob import glob
from itertools import islice, pairwise
from pathlib import Path
from urllib.parse import urlsplit

from datamodules.storage.remote import list_names, protocol_of
from fvl_lightning.core.errors import DataError, nearest

MAX_SHARDS = 1_000_000
"""Largest number of names that a pattern may stand for."""

TO_VALIDATE_ON = (
    'build again with "splits={train: 0.99, validation: 0.01}" into another output, '
    "or name tars to validate on in data.shards.validation"
)
"""Advice for a dataset without a validation split."""

_SHARD = re.compile(r"(.+?)(?:-part\d+of\d+)?-\d+\.tar")
_BRACES = re.compile(r"\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
_GLOB = re.compile(r"[*?\[]")


def expand_shards(spec: str | Sequence[str]) -> list[str]:
    """Returns the tars that a spec names, sorted.

    Args:
        spec: a folder (all its .tar), a tar, a glob, braces ({000000..000999}.tar, {a,b}.tar), each as a path or as a
            URL of datamodules.storage.remote.PACKAGES, or a list of these.

    Raises:
        DataError: a protocol is not allowed, an entry names no tar, or a tar is named twice.
    """
    entries = [spec] if isinstance(spec, str) else list(spec)
    if not entries:
        raise DataError("no shards are named: expected a folder, a path, a glob or a URL")
    shards: list[str] = []
    for entry in entries:
        # Nested braces may give a name more than once.
        patterns = list(dict.fromkeys(islice(_braces(_local(entry)), MAX_SHARDS + 1)))
        if len(patterns) > MAX_SHARDS:
            raise DataError(f"shards {entry}: more than {MAX_SHARDS} names")
        shards += _existing(patterns)
    shards.sort()
    for one, other in pairwise(shards):
        if one == other:
            raise DataError(f"shard {one} is named twice")
    return shards


def split_shards(root: str, split: str) -> list[str]:
    """Returns the tars `<split>-<number>.tar` and `<split>-part<i>of<n>-<number>.tar` under a folder or URL, sorted.

    Raises:
        DataError: there is no such folder, or it has no shard of that split.
    """
    root = _local(root)
    names = _names(root)
    found = [(name, of_split) for name in names if (of_split := split_of_shard(name)) is not None]
    shards = [f"{root.rstrip('/')}/{name}" for name, of_split in found if of_split == split]
    if not shards:
        splits = sorted({of_split for _, of_split in found})
        there = f"there are the splits {', '.join(splits)}" if splits else "there are no shards at all"
        advice = f"; {TO_VALIDATE_ON}" if split == "validation" and splits else ""
        raise DataError(f"no shard {split}-<number>.tar in {root}: {there}{_near(split, splits)}{advice}")
    return shards


def split_of_shard(name: str) -> str | None:
    """Returns the split of a shard by its file name; None where the name is not `<split>-<number>.tar`."""
    match = _SHARD.fullmatch(name)
    return None if match is None else match[1]


def _local(place: str) -> str:
    """Returns a path with ~ and file:// resolved, or the URL unchanged."""
    protocol = protocol_of(place)
    if protocol == "file":
        place = re.sub(r"^file://(localhost(?=/))?", "", place, flags=re.IGNORECASE)
    elif protocol is not None:
        return place
    return os.path.normpath(os.path.expanduser(place))


def _braces(pattern: str) -> Iterator[str]:
    """Yields all names that a pattern's braces stand for; numbers keep their leading zeros, as in a shell."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    if match[3] is not None:
        middles: Iterable[str] = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        width = max(len(match[1]), len(match[2])) if "0" in (match[1][0], match[2][0]) else 0
        step = 1 if first <= last else -1
        middles = (f"{number:0{width}d}" for number in range(first, last + step, step))
    for middle in middles:
        yield from _braces(pattern[: match.start()] + middle + pattern[match.end() :])


def _existing(patterns: Sequence[str]) -> Iterator[str]:
    """Yields the tars of patterns without braces; each folder is listed once."""
    listings: dict[str, set[str]] = {}
    for pattern in patterns:
        folder, _, name = pattern.rpartition("/")
        protocol = protocol_of(pattern)
        if protocol is None:
            yield from _local_tars(pattern)
        elif protocol in ("http", "https"):
            if not urlsplit(pattern).path.endswith(".tar"):
                raise DataError(f"shards {pattern}: a web server has no listing, so name each .tar, with braces say")
            yield pattern
        elif _GLOB.search(folder):
            raise DataError(f"shards {pattern}: only the last part of a URL may have *, ? or [")
        else:
            place = folder if name.endswith(".tar") or _GLOB.search(name) else pattern.rstrip("/")
            if place not in listings:
                listings[place] = {found for found in list_names(place) if found.endswith(".tar")}
            yield from _chosen(pattern, place, listings[place])


def _chosen(pattern: str, place: str, names: set[str]) -> list[str]:
    """Returns the tars under a URL that match a pattern."""
    wanted = re.compile(translate(pattern[len(place) + 1 :] or "*"))
    chosen = sorted(filter(wanted.fullmatch, names))
    if not chosen:
        raise _nothing(pattern, place, names)
    return [f"{place}/{name}" for name in chosen]


def _local_tars(pattern: str) -> list[str]:
    path = Path(pattern)
    if path.is_dir():
        tars = sorted(str(found) for found in path.glob("*.tar") if found.is_file())
    elif path.is_file() and pattern.endswith(".tar"):
        return [pattern]
    else:
        tars = sorted(name for name in glob(pattern, recursive=True) if name.endswith(".tar"))
    if not tars:
        place = path if path.is_dir() else path.parent
        raise _nothing(pattern, str(place), os.listdir(place) if place.is_dir() else None)
    return tars


def _nothing(pattern: str, place: str, names: Iterable[str] | None) -> DataError:
    """Returns the error for a pattern that names no tar; `names` are the files in the folder that was searched."""
    if names is None:
        return DataError(f"no shard {pattern}: there is no folder {place}{_near(Path(place).name, _siblings(place))}")
    tars = sorted(name for name in names if name.endswith(".tar"))
    if not tars:
        packed = [name for name in names if re.search(r"\.(tar\.\w+|tgz)$", name)]
        hint = f"; {packed[0]} is compressed and has to be unpacked to a .tar" if packed else ""
        return DataError(f"no shard {pattern}: {place} has no .tar{hint}")
    several = f"{tars[0]} to {tars[-1]}" if len(tars) > 1 else tars[0]
    return DataError(f"no shard {pattern}: {place} has {several}{_near(pattern.rpartition('/')[2], tars)}")


def _names(root: str) -> list[str]:
    """Returns the names of the files in a folder or under a URL, sorted."""
    if protocol_of(root) is not None:
        return list_names(root)
    if not Path(root).is_dir():
        raise DataError(f"no folder {root} with shards{_near(Path(root).name, _siblings(root))}")
    return sorted(path.name for path in Path(root).iterdir() if path.is_file())


def _siblings(folder: str) -> list[str]:
    parent = Path(folder).parent
    return [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _near(value: str, allowed: Iterable[str]) -> str:
    close = nearest(value, allowed)
    return f"; did you mean '{close}'?" if close else ""
