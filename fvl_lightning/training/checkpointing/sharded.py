"""A checkpoint in parts: every rank writes the rows that it holds of what is split, the first one all else beside them.

    last.ckpt/
        common.ckpt        what is not split, as in a whole checkpoint
        part-00000.ckpt    {place in the checkpoint: (first row, rows)} of rank 0, and so on
        manifest.json      size and checksum of each of these files, written when all of them are there

The files are torch's, read without running anything of theirs (`weights_only`). torch.distributed.checkpoint has two
formats: the index of one is a pickle that is loaded as such, and the other has no place for what is not a tensor.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fvl_lightning.core.atomic import durable_file
from fvl_lightning.training.checkpointing.checksum import checksum_of, read_file, write_counted

MANIFEST, COMMON, PART = "manifest.json", "common.ckpt", "part-{:05d}.ckpt"
NAMES = re.compile(r"common\.ckpt|part-[0-9]{5,}\.ckpt")
"""The files that a manifest may name."""

TreePath = tuple[str | int, ...]
"""Keys and numbers that lead to a value in a checkpoint."""
Parts = dict[TreePath, tuple[int, Tensor]]
"""What one rank holds: number of its first row, and its rows."""
Manifest = dict[str, list[int]]
"""{file: [bytes, checksum]}"""


@dataclass(frozen=True)
class ShardedTensor:
    """A tensor whose rows several ranks wrote: `parts` are (first row, rows), in order, and are read when needed."""

    parts: list[tuple[int, Tensor]]

    @property
    def count(self) -> int:
        """The number of rows of the whole tensor."""
        first, rows = self.parts[-1]
        return first + len(rows)

    def between(self, first: int, end: int) -> Tensor:
        """Returns the rows from `first` up to, but without, `end`."""
        found = [
            rows[max(first - start, 0) : end - start]
            for start, rows in self.parts
            if start < end and start + len(rows) > first
        ]
        return torch.cat(found) if found else self.parts[0][1][:0]


def whole(value: Tensor | ShardedTensor) -> Tensor:
    """All rows of a checkpoint's tensor."""
    return value.between(0, value.count) if isinstance(value, ShardedTensor) else value


def rows_between(value: Tensor | ShardedTensor, first: int, end: int) -> Tensor:
    """Returns the rows from `first` up to, but without, `end` of a checkpoint's tensor."""
    return value.between(first, end) if isinstance(value, ShardedTensor) else value[first:end]


def split(tree: Any, place: TreePath = ()) -> tuple[Any, dict[TreePath, DTensor]]:
    """A checkpoint without its sharded tensors, and these by their places, in an order that all ranks share."""
    if isinstance(tree, DTensor):
        return None, {place: tree}
    if not isinstance(tree, dict | list):
        return tree, {}
    rest: dict[Any, Any] = {}
    sharded: dict[TreePath, DTensor] = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        left, found = split(value, (*place, key))
        sharded |= found
        if not isinstance(value, DTensor):
            rest[key] = left
    assert isinstance(tree, dict) or len(rest) == len(tree), "a list would lose its order"
    return (rest if isinstance(tree, dict) else list(rest.values())), sharded


def put(tree: Any, place: TreePath, value: Any) -> None:
    """Puts back what `split` took out of a checkpoint."""
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value


def copied(tree: Any) -> Any:
    """A checkpoint that training no longer changes, in main memory."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copied(value) for value in tree)
    return tree


def made_whole(tree: Any) -> Any:
    """A checkpoint with its tensors in one piece each."""
    if isinstance(tree, ShardedTensor):
        return whole(tree)
    if isinstance(tree, dict):
        return {key: made_whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [made_whole(value) for value in tree]
    return tree


def write_parts(folder: Path, rank: int, common: dict[str, Any] | None, parts: Parts) -> Manifest:
    """Writes this rank's files into `folder`, which the first rank has made; `common` is None on all but that one."""
    files: dict[str, Any] = {PART.format(rank): parts} if parts else {}
    if common is not None:
        files[COMMON] = common
    return {name: _write(folder / name, content) for name, content in files.items()}


def write_manifest(folder: Path, files: Manifest) -> None:
    """Writes the manifest, which makes the folder a complete checkpoint."""
    with durable_file(folder / MANIFEST) as file:
        file.write(json.dumps({"files": files}, indent=2).encode())


def is_whole_folder(folder: Path) -> bool:
    """Returns whether every file of the manifest is there, byte for byte."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return COMMON in files and all(
            NAMES.fullmatch(name)
            and (folder / name).stat().st_size == size
            and _checksum(folder / name) == checksum
            for name, (size, checksum) in files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # what stray bytes make of it
        return False


def read_folder(folder: Path) -> dict[str, Any]:
    """The checkpoint, its values mapped rather than loaded, with ShardedTensor for what is split."""
    names: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    found: dict[TreePath, list[tuple[int, Tensor]]] = {}
    for name in sorted(set(names) - {COMMON}):
        for place, part in read_file(folder / name).items():
            found.setdefault(place, []).append(part)
    checkpoint: dict[str, Any] = read_file(folder / COMMON)
    for place, parts in found.items():
        put(checkpoint, place, ShardedTensor(sorted(parts, key=lambda part: part[0])))
    return checkpoint


def _write(path: Path, content: Any) -> list[int]:
    with durable_file(path) as file:
        counted = write_counted(file, content)
    return [counted.size, counted.checksum]


def _checksum(path: Path) -> int:
    with path.open("rb") as file:
        return checksum_of(file, path.stat().st_size)
