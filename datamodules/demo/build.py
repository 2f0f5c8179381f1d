"""Builds the demo set: shards of every split of one level, and the tokenizer that all levels share."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.demo.levels import Level, level_named
from datamodules.demo.record import make_sample
from datamodules.demo.scenes import ALL_SPLITS, UNSEEN_PAIRS, UNSEEN_WORDS
from datamodules.demo.tokenizer import save_tokenizer
from datamodules.storage.writer import ShardWriter
from fvl_lightning.core.atomic import atomic_directory
from fvl_lightning.core.errors import DataError

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the samples; it is increased when the same configuration would give others."""

COUNTS = {"train": 8000, "validation": 400, "test": 600, UNSEEN_WORDS: 100, UNSEEN_PAIRS: 100}
"""Default number of images per split."""


def demo_folder(root: Path, level: str, counts: Mapping[str, int], seed: int) -> Path:
    """Returns the folder of a configuration's set: `<root>/<level>`, with a hash for non-default counts or seed."""
    manifest = _manifest(level, counts, seed)
    if manifest == _manifest(level, COUNTS, 0):
        return root / level
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return root / f"{level}-{digest[:8]}"


def build_demo(root: Path, level: str, counts: Mapping[str, int], seed: int) -> Path:
    """Builds a configuration's set and the tokenizer under `root`, unless they exist; returns the set's folder.

    Args:
        root: folder of all demo sets.
        level: easy, medium or hard.
        counts: number of images of every split.
        seed: another seed gives another set.

    Raises:
        ConfigError: no such level, or scikit-learn is missing.
        DataError: the folder holds something else, or cannot be written.
    """
    assert set(counts) == set(ALL_SPLITS), f"counts for {', '.join(ALL_SPLITS)}"
    chosen, folder = level_named(level), demo_folder(root, level, counts, seed)
    build_tokenizer(root)
    try:
        manifest = _manifest(level, counts, seed)
        if not _complete(folder, manifest):
            log.info("drawing the demo set %s (%d images)", folder, sum(counts.values()))
            with _atomic_folder(folder, manifest) as tmp_path:
                for split in ALL_SPLITS:
                    _write_split(tmp_path, chosen, split, counts[split], seed)
    except OSError as error:
        raise DataError(f"the demo set cannot be written to {root}: {error.strerror or error}") from None
    return folder


def build_tokenizer(root: Path) -> None:
    """Builds the tokenizer of all demo sets under `root`, unless it exists; DataError if it cannot be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not _complete(root / "tokenizer", {"format": FORMAT}):
            with _atomic_folder(root / "tokenizer", {"format": FORMAT}) as tmp_path:
                save_tokenizer(tmp_path)
    except OSError as error:
        raise DataError(f"the demo set cannot be written to {root}: {error.strerror or error}") from None


def _write_split(folder: Path, level: Level, split: str, count: int, seed: int) -> None:
    with ShardWriter(folder, split) as writer:
        for index in range(count):
            key, record, png = make_sample(seed, level, split, index)
            writer.write(key, record, [png])


def _manifest(level: str, counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    return {"format": FORMAT, "level": level, "seed": seed, "counts": dict(counts)}


def _complete(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Returns whether `folder` holds the set of `manifest`; False without a folder, DataError for another set."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder} is not a demo set: it has no readable manifest.json; delete or move it") from None
    if found != manifest:
        raise DataError(f"{folder} holds another demo set (its manifest.json: {json.dumps(found)}); delete or move it")
    return True


@contextmanager
def _atomic_folder(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `folder` with its manifest at the end; on any error it is removed."""
    with atomic_directory(folder, exist_ok=True) as tmp_path:
        yield tmp_path
        (tmp_path / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    # Where another process was faster, this checks what it has built.
    _complete(folder, manifest)
