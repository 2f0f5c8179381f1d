"""Cached features of a frozen encoder, computed once per image and read from memory-mapped files.

A frozen encoder gives the same features in every epoch and every arm of a comparison, and running it takes most of the
time of a small training step. Files: `<folder>/<key>/<split>/<source>.npy` [I, N, D] float32 and `offsets.npy`. The key
is the hash of identity.json in the same folder, which identifies the encoder, the pixels and the shards.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodules.base import BatchData
from datamodules.images import decoding as images
from datamodules.images import transforms as pixels
from datamodules.storage.content_hash import file_hashes
from fvl_lightning.core.atomic import atomic_directory, remove_abandoned
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import FULL_DISK_ERRORS, DataError
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.encoders.base import Encoder

logger = logging.getLogger(__name__)

IMAGES_PER_BATCH = 64
IDENTITY = "identity.json"
"""The file that says from what the features of a folder were computed, for people to read."""
OFFSETS, HASHES = "offsets.npy", "hashes.json"
PIXEL_MODULES = (images, pixels)
PACKAGES = ("torch", "transformers", "pillow")
"""Packages whose code computes features and pixels; another version may give other bits."""


class FeatureCache:
    """Looks up the cached features of a sample's images: `cache(split, index)` -> {source: [I, N, D]}.

    Args:
        folders: {split: folder of its files}.
        sources: the names of the feature sources.
    """

    def __init__(self, folders: dict[str, Path], sources: list[str]) -> None:
        self.folders, self.sources = folders, sources
        self._open: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}

    def __call__(self, split: str, index: int) -> dict[str, Tensor]:
        """Returns {source: [I, N, D]} for the I images of sample `index`, copied from the memory-mapped files."""
        offsets, arrays = self._arrays(split)
        start, stop = int(offsets[index]), int(offsets[index + 1])
        return {name: torch.from_numpy(array[start:stop].copy()) for name, array in arrays.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the open files; each loader worker maps them itself."""
        return {**self.__dict__, "_open": {}}

    def _arrays(self, split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if split not in self._open:
            folder = self.folders[split]
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in self.sources}
            self._open[split] = (np.load(folder / OFFSETS, allow_pickle=False), arrays)
        return self._open[split]


def build_feature_cache(
    encoder: Encoder,
    data: BatchData,
    splits: list[str],
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> FeatureCache:
    """Returns the cache of the features of `encoder` for the images of `splits`; computes what is missing.

    What processes that were killed have left in the folder is removed.

    Args:
        encoder: a frozen encoder in eval mode.
        data: a connected data module.
        splits: the names of the splits.
        folder: the folder of all caches.
        progress: called with the split, the number of finished samples and the number of samples.

    Raises:
        DataError: the features cannot be written; on a full disk before any are computed.
    """
    assert not encoder.training, "an encoder in train mode has no fixed features"
    identities = {**encoder_identity(encoder), **pixel_identity(data)}
    folders: dict[str, Path] = {}
    for key in folder.glob("*/"):
        remove_abandoned(key)
    for split in splits:
        identity = json.dumps({**identities, "data": data.store(split).content_hash()}, sort_keys=True, indent=2)
        target = folder / hashlib.sha256(identity.encode()).hexdigest()[:16] / split
        if target.is_dir() and not is_whole_cache(target, encoder, data, split):
            logger.warning("%s is damaged; its features are computed again", target)
            shutil.rmtree(target)
        if not target.is_dir():
            _write_split(encoder, data, split, target, identity, progress)
        folders[split] = target
    return FeatureCache(folders, list(encoder.specs))


def is_whole_cache(folder: Path, encoder: Encoder, data: BatchData, split: str) -> bool:
    """Returns whether the files of a split have the shapes of its features, and the bytes that were written.

    Blocks are compared for large files; caches of earlier versions have no hashes.
    """
    try:
        offsets = np.load(folder / OFFSETS, allow_pickle=False)
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in encoder.specs]
        shapes = [(int(offsets[-1]), spec.tokens, spec.dim) for spec in encoder.specs.values()]
        fits = np.array_equal(offsets, _offsets(data, split)) and [array.shape for array in arrays] == shapes
        if not fits or not (folder / HASHES).is_file():
            return fits
        found = file_hashes(folder)
        return read_sealed(folder / HASHES) == {name: found[name] for name in found if name != HASHES}
    except (OSError, ValueError, EOFError, IndexError, DataError):
        return False


def _offsets(data: BatchData, split: str) -> NDArray[np.int64]:
    """Returns the number of images before each sample of a split, and at last that of all."""
    store = data.store(split)
    counts = [store.image_count(index) for index in range(len(store))]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def encoder_identity(encoder: Encoder) -> dict[str, Any]:
    """Returns everything about an encoder that determines its features, as plain values."""
    weights = encoder.feature_state()
    return {
        "weights": weights_hash(weights),
        "dtypes": sorted({str(value.dtype) for value in weights.values()}),
        "specs": {name: str(spec) for name, spec in encoder.specs.items()},
        "config": as_plain(encoder.config),
        "code": hash_code(encoder),
        "packages": {name: version(name) for name in PACKAGES},
    }


def pixel_identity(data: BatchData) -> dict[str, Any]:
    """Returns everything but the shards that determines the pixels of a connected data module, as plain values."""
    code = [_hash_file(Path(str(module.__file__))) for module in PIXEL_MODULES]
    return {"pixels": data.reader.identity(), "pixel_code": code}


def hash_code(encoder: nn.Module) -> dict[str, str]:
    """Returns {file: hash} for the code of an encoder: the files, or packages, that define its modules' classes.

    A user may edit an encoder without renaming it. Libraries (PACKAGES) are identified by version instead.
    """
    classes = {base for module in encoder.modules() for base in type(module).__mro__}
    files: set[Path] = set()
    for one in classes:
        module = sys.modules.get(one.__module__)
        file = getattr(module, "__file__", None)
        if file is None or one.__module__.partition(".")[0] in (*PACKAGES, "abc", "typing"):
            continue
        # A plugin is a single file; modules of a package import each other.
        package = getattr(module, "__package__", None)
        files |= set(Path(file).parent.glob("*.py")) if package else {Path(file)}
    # By file name rather than path, since another checkout holds the same code.
    return {file.name: _hash_file(file) for file in sorted(files)}


def _hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _begin_array(path: Path, shape: tuple[int, int, int], written: ExitStack) -> BinaryIO:
    """Opens a .npy file of float32 behind its header until `written` ends, with disk space for the whole array.

    It is written, not mapped: a full disk ends a process that writes into a mapped file without a sentence.
    """
    file = written.enter_context(path.open("wb"))
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, file.tell() + 4 * math.prod(shape))
        except OSError as error:
            if error.errno in FULL_DISK_ERRORS:  # any other: a file system that cannot reserve space
                raise
    return file


@torch.no_grad()
def _write_split(
    encoder: Encoder,
    data: BatchData,
    split: str,
    target: Path,
    identity: str,
    progress: Callable[[str, int, int], None],
) -> None:
    offsets = _offsets(data, split)
    samples = len(offsets) - 1
    # If another process was faster, its folder has the same content, since the key identifies it.
    with atomic_directory(target, exist_ok=True) as tmp_path, ExitStack() as written:
        device = next(encoder.parameters()).device
        files = {
            name: _begin_array(tmp_path / f"{name}.npy", (int(offsets[-1]), spec.tokens, spec.dim), written)
            for name, spec in encoder.specs.items()
        }
        for start in range(0, samples, IMAGES_PER_BATCH):
            indices = range(start, min(start + IMAGES_PER_BATCH, samples))
            features = encoder(data.pixels(split, indices).to(device))
            for name, file in files.items():
                file.write(features[name].float().cpu().contiguous().numpy().data)
            progress(split, indices[-1] + 1, samples)
        written.close()  # before the files are hashed
        np.save(tmp_path / OFFSETS, offsets, allow_pickle=False)
        (tmp_path / IDENTITY).write_text(identity, encoding="utf-8")
        write_sealed(tmp_path / HASHES, file_hashes(tmp_path))
