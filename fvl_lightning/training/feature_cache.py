"""Cached features of a frozen encoder, computed once per image and read from memory-mapped files.

A frozen encoder gives the same features in every epoch and every arm of a comparison, and running it takes most of the
time of a small training step. Files: `<folder>/<key>/<split>/<source>.npy` [I, N, D] of float32, or of the bits of
bfloat16, and `offsets.npy`. The key is the hash of identity.json in the same folder, which identifies the encoder, the
pixels and the shards.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodules.base import BatchData
from datamodules.batching.workers import read_ahead
from datamodules.images import decoding as images
from datamodules.images import tile_reader, tiling
from datamodules.images import transforms as pixels
from datamodules.storage.content_hash import file_hashes
from fvl_lightning.core.atomic import atomic_directory, remove_abandoned
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.feature_files import (
    SampleImages,
    as_array,
    as_features,
    create_array,
    file_type,
    image_offsets,
    images_per_pass,
    may_be_offsets,
    open_array,
)

Progress = Callable[[str, int, int], None]
"""Called with the split, the number of finished samples and the number of samples."""
logger = logging.getLogger(__name__)

IMAGES_PER_BATCH = 64
"""Samples whose images the encoder is given at once; on a GPU fewer images where its memory does not hold them."""
IDENTITY = "identity.json"
"""The file that says from what the features of a folder were computed, for people to read."""
OFFSETS, HASHES = "offsets.npy", "hashes.json"
PIXEL_MODULES, TILE_MODULES = (images, pixels), (tiling, tile_reader)
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
        copies = {name: torch.from_numpy(array[start:stop].copy()) for name, array in arrays.items()}
        return {name: as_features(copy) for name, copy in copies.items()}

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
    progress: Progress = lambda split, done, total: None,
    *,
    device: torch.device | None = None,
    dtype: str = "float32",
    workers: int = 0,
    ranks: Ranks | None = None,
) -> FeatureCache:
    """Returns the cache of the features of `encoder` for the images of `splits`; computes what is missing.

    What processes that were killed have left in the folder is removed.

    Args:
        encoder: a frozen encoder in eval mode; of several ranks, that of rank 0 counts. It stays on its device.
        data: a connected data module.
        splits: the names of the splits.
        folder: the folder of all caches.
        progress: called with the split, the number of finished samples and the number of samples.
        device: the device on which the features are computed; None for that of the encoder.
        dtype: the type of the numbers in the files, float32 or bfloat16.
        workers: processes that read the images; 0 reads in this one.
        ranks: the ranks that share the samples, and the folder; None for this process alone.

    Raises:
        DataError: the features cannot be written; on a full disk before any are computed.
    """
    assert not encoder.training, "an encoder in train mode has no fixed features"
    ranks = ranks or Ranks()
    planned = ranks.broadcast_from_rank0(lambda: _plan(encoder, data, splits, folder, dtype))
    missing = [split for split, (_, _, is_there) in planned.items() if not is_there]
    with ranks.replica(encoder, device) if missing else nullcontext(encoder) as replica:
        for split in missing:
            target, identity, _ = planned[split]
            offsets = ranks.broadcast_from_rank0(partial(image_offsets, data, split, workers))
            work = _Pass(replica, SampleImages(data, split), offsets, dtype, workers, ranks, progress)
            _write_split(work, target, identity)
    return FeatureCache({split: target for split, (target, _, _) in planned.items()}, list(encoder.specs))


def _plan(
    encoder: Encoder, data: BatchData, splits: list[str], folder: Path, dtype: str
) -> dict[str, tuple[Path, str, bool]]:
    """Returns {split: (its folder, its identity, whether its features are there)}; removes what is not whole."""
    identities = {**encoder_identity(encoder), **pixel_identity(data)}
    if dtype != "float32":
        identities["dtype"] = dtype
    planned: dict[str, tuple[Path, str, bool]] = {}
    for key in folder.glob("*/"):
        remove_abandoned(key)
    for split in splits:
        identity = json.dumps({**identities, "data": data.store(split).content_hash()}, sort_keys=True, indent=2)
        target = folder / hashlib.sha256(identity.encode()).hexdigest()[:16] / split
        if target.is_dir() and not is_whole_cache(target, encoder, data, split, dtype):
            logger.warning("%s is damaged; its features are computed again", target)
            shutil.rmtree(target)
        planned[split] = target, identity, target.is_dir()
    return planned


def is_whole_cache(folder: Path, encoder: Encoder, data: BatchData, split: str, dtype: str = "float32") -> bool:
    """Returns whether the files of a split have the shapes and type of its features, and the bytes that were written.

    Blocks are compared for large files; caches of earlier versions have no hashes.
    """
    try:
        offsets = np.load(folder / OFFSETS, allow_pickle=False)
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in encoder.specs]
        shapes = [(int(offsets[-1]), spec.tokens, spec.dim) for spec in encoder.specs.values()]
        wanted = [(shape, np.dtype(file_type(dtype))) for shape in shapes]
        there = [(array.shape, array.dtype) for array in arrays]
        fits = may_be_offsets(offsets, data, split) and there == wanted
        if not fits or not (folder / HASHES).is_file():
            return fits
        found = file_hashes(folder)
        return read_sealed(folder / HASHES) == {name: found[name] for name in found if name != HASHES}
    except (OSError, ValueError, EOFError, IndexError, DataError):
        return False


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
    modules = PIXEL_MODULES if data.reader.tiling is None else (*PIXEL_MODULES, *TILE_MODULES)
    code = [_hash_file(Path(str(module.__file__))) for module in modules]
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


@dataclass(frozen=True)
class _Pass:
    """One pass of the encoder over a split; see build_feature_cache."""

    encoder: Encoder
    samples: SampleImages
    offsets: NDArray[np.int64]
    dtype: str
    workers: int
    ranks: Ranks
    progress: Progress


def _write_split(work: _Pass, target: Path, identity: str) -> None:
    """Writes the folder of a split; every rank writes its part of each file, and the bytes are those of one rank."""
    ranks, specs, images = work.ranks, work.encoder.specs, int(work.offsets[-1])
    with ExitStack() as folder:

        def begin() -> Path:
            # If another process was faster, its folder has the same content, since the key identifies it.
            path = folder.enter_context(atomic_directory(target, exist_ok=True))
            for name, spec in specs.items():
                create_array(path / f"{name}.npy", (images, spec.tokens, spec.dim), work.dtype)
            return path

        def finish() -> None:
            np.save(tmp_path / OFFSETS, work.offsets, allow_pickle=False)
            (tmp_path / IDENTITY).write_text(identity, encoding="utf-8")
            write_sealed(tmp_path / HASHES, file_hashes(tmp_path))
            folder.close()  # the folder gets its name before the other ranks go on

        tmp_path = ranks.broadcast_from_rank0(begin)
        ranks.gather(lambda: _write_share(work, tmp_path))
        ranks.broadcast_from_rank0(finish)


@torch.no_grad()
def _write_share(work: _Pass, folder: Path) -> None:
    """Computes and writes the features of this rank's samples, which follow each other.

    Batches begin at the same samples for any number of ranks, so that features are the same.
    """
    encoder, ranks, count = work.encoder, work.ranks, len(work.offsets) - 1
    batches = [range(start, min(start + IMAGES_PER_BATCH, count)) for start in range(0, count, IMAGES_PER_BATCH)]
    first, last = (len(batches) * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1))
    if first == last:
        return
    own = range(batches[first].start, batches[last - 1].stop)
    like = next(encoder.parameters())
    with ExitStack() as written:
        images = int(work.offsets[own.start])
        files = {name: open_array(folder / f"{name}.npy", images, written) for name in encoder.specs}
        items = written.enter_context(read_ahead(work.samples, work.workers, own))
        for batch in batches[first:last]:
            loaded = [next(items) for _ in batch]
            for error in (item for item in loaded if isinstance(item, UserError)):
                raise error
            pixels = torch.cat(loaded)
            planned = int(work.offsets[batch.stop] - work.offsets[batch.start])
            if len(pixels) != planned:
                raise DataError(f"samples {batch} of {work.samples.split} have {len(pixels)} tiles, not {planned}")
            most = len(pixels) if work.samples.data.reader.tiling is None else IMAGES_PER_BATCH
            for part in pixels.split(images_per_pass(pixels, like.device, max(1, most))):
                features = encoder(part.to(like.device, like.dtype))
                for name, file in files.items():
                    file.write(as_array(features[name], work.dtype).data)
            work.progress(work.samples.split, min(count, (batch.stop - own.start) * ranks.world_size), count)
