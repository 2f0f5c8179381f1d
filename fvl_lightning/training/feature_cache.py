"""Features of a frozen encoder, computed once per image and read back from memory-mapped files.

A frozen encoder gives the same features in every epoch and every arm of a comparison; running it again is most of the
time of a small training step. Files: `<folder>/<key>/<split>/<source>.npy` [I, N, D] float32 and `offsets.npy`, where
the key is the hash of identity.json beside them: what the encoder, the pixels and the shards were.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.images import decoding as images
from datamodules.images import transforms as pixels
from fvl_lightning.core.atomic import atomic_directory
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.weight_files import weights_hash

IMAGES_AT_ONCE = 64
IDENTITY = "identity.json"
"""What the features of a folder were made of, for people to read."""
PIXEL_CODE = (images, pixels)
PACKAGES = ("torch", "transformers", "pillow")
"""Packages whose code decides features and pixels; another version of one may give other bits."""


class FeatureCache:
    """Looks up the features of a sample's images: `cache(split, index)` -> {source: [I, N, D]}."""

    def __init__(self, folders: dict[str, Path], sources: list[str]) -> None:
        self.folders, self.sources = folders, sources
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
            folder = self.folders[split]
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
    assert not encoder.training, "an encoder in train mode has no fixed features"
    made_with = {**encoder_identity(encoder), **pixel_identity(data)}
    folders: dict[str, Path] = {}
    for split in splits:
        identity = json.dumps({**made_with, "data": data.store(split).content_hash()}, sort_keys=True, indent=2)
        target = folder / hashlib.sha256(identity.encode()).hexdigest()[:16] / split
        if not target.is_dir():
            _write_split(encoder, data, split, target, identity, progress)
        folders[split] = target
    return FeatureCache(folders, list(encoder.specs))


def encoder_identity(encoder: Any) -> dict[str, Any]:
    """Everything of an encoder that its features depend on, as plain values."""
    weights = encoder.feature_state()
    return {
        "weights": weights_hash(weights),
        "dtypes": sorted({str(value.dtype) for value in weights.values()}),
        "specs": {name: str(spec) for name, spec in encoder.specs.items()},
        "config": as_plain(encoder.config),
        "code": code_of(encoder),
        "packages": {name: version(name) for name in PACKAGES},
    }


def pixel_identity(data: Any) -> dict[str, Any]:
    """Everything of a connected data module, but its shards, that the pixels depend on, as plain values."""
    code = [_hash_of(Path(str(module.__file__))) for module in PIXEL_CODE]
    return {"pixels": data.reader.identity(), "pixel_code": code}


def code_of(encoder: nn.Module) -> dict[str, str]:
    """{file: hash} of the code of an encoder: its classes and those of its parts, with the files beside them.

    An encoder of one's own is edited under the same name; so are the kit's in a checkout. PACKAGES go by version.
    """
    classes = {base for module in encoder.modules() for base in type(module).__mro__}
    files: set[Path] = set()
    for one in classes:
        module = sys.modules.get(one.__module__)
        file = getattr(module, "__file__", None)
        if file is None or one.__module__.partition(".")[0] in (*PACKAGES, "abc", "typing"):
            continue
        # A plugin's file stands alone; a package's modules import each other.
        package = getattr(module, "__package__", None)
        files |= set(Path(file).parent.glob("*.py")) if package else {Path(file)}
    # By name rather than by place, since another checkout of the same code is the same.
    return {file.name: _hash_of(file) for file in sorted(files)}


def _hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@torch.no_grad()
def _write_split(
    encoder: Any, data: Any, split: str, target: Path, identity: str, progress: Callable[[str, int, int], None]
) -> None:
    store = data.store(split)
    counts = [store.image_count(index) for index in range(len(store))]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # Where another process was faster, its folder has the same content: the key names it.
    with atomic_directory(target, exist_ok=True) as tmp_path:
        device = next(encoder.parameters()).device
        arrays = {
            name: np.lib.format.open_memmap(
                tmp_path / f"{name}.npy", mode="w+", dtype=np.float32, shape=(int(offsets[-1]), spec.tokens, spec.dim)
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
        np.save(tmp_path / "offsets.npy", offsets, allow_pickle=False)
        (tmp_path / IDENTITY).write_text(identity, encoding="utf-8")
