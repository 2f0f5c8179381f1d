"""Features of a frozen encoder, computed once per image and read back from memory-mapped files.

A frozen encoder gives the same features in every epoch and every arm of a comparison; running it again is most of the
time of a small training step. Files: `<folder>/<key>/<split>/<source>.npy` [I, N, D] float32 and `offsets.npy`, where
the key names the encoder's weights and configuration, its sources and the shards.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fvl_lightning.core.config import as_plain
from fvl_lightning.training.weights import weights_hash

IMAGES_AT_ONCE = 64


class FeatureCache:
    """Looks up the features of a sample's images: `cache(split, index)` -> {source: [I, N, D]}."""

    def __init__(self, folder: Path, sources: list[str]) -> None:
        self.folder, self.sources = folder, sources
        self._open: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}

    def __call__(self, split: str, index: int) -> dict[str, Tensor]:
        """Features of the images of sample `index` of `split`, copied out of the mapped file."""
        offsets, arrays = self._arrays(split)
        start, stop = int(offsets[index]), int(offsets[index + 1])
        return {name: torch.from_numpy(array[start:stop].copy()) for name, array in arrays.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Workers map the files themselves."""
        return {**self.__dict__, "_open": {}}

    def _arrays(self, split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if split not in self._open:
            folder = self.folder / split
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in self.sources
            }
            self._open[split] = (np.load(folder / "offsets.npy", allow_pickle=False), arrays)
        return self._open[split]


def build_feature_cache(
    encoder: Any,
    data: Any,
    splits: list[str],
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> FeatureCache:
    """The cache of `encoder` over `data`'s splits, computed where it is not there yet.

    Args:
        encoder: frozen, in eval mode.
        data: a connected data module.
        folder: where caches lie.
        progress: called with split, samples done and samples in all.
    """
    key = _cache_key(encoder, data)
    for split in splits:
        target = folder / key / split
        if not target.is_dir():
            _write_split(encoder, data, split, target, progress)
    return FeatureCache(folder / key, list(encoder.specs))


def _cache_key(encoder: Any, data: Any) -> str:
    identity = {
        "weights": weights_hash(encoder.state_dict()),
        "specs": {name: str(spec) for name, spec in encoder.specs.items()},
        "config": as_plain(encoder.config),
        "shards": data.manifest_hash(),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@torch.no_grad()
def _write_split(
    encoder: Any, data: Any, split: str, target: Path, progress: Callable[[str, int, int], None]
) -> None:
    store = data.store(split)
    counts = [store.image_count(index) for index in range(len(store))]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.mkdir(parents=True, exist_ok=True)
    try:
        device = next(encoder.parameters()).device
        arrays = {
            name: np.lib.format.open_memmap(
                beside / f"{name}.npy", mode="w+", dtype=np.float32, shape=(int(offsets[-1]), spec.tokens, spec.dim)
            )
            for name, spec in encoder.specs.items()
        }
        for start in range(0, len(counts), IMAGES_AT_ONCE):
            indices = range(start, min(start + IMAGES_AT_ONCE, len(counts)))
            features = encoder(data.pixels(split, indices).to(device))
            for name, array in arrays.items():
                array[offsets[indices[0]] : offsets[indices[-1] + 1]] = features[name].float().cpu().numpy()
            progress(split, indices[-1] + 1, len(counts))
        for array in arrays.values():
            array.flush()
        np.save(beside / "offsets.npy", offsets, allow_pickle=False)
        os.replace(beside, target)
    except OSError:
        if not target.is_dir():
            raise
        # Another process was first, with the same content: the key names it.
    finally:
        shutil.rmtree(beside, ignore_errors=True)
