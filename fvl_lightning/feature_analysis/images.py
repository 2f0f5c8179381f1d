"""Features of some images of a split: one pass of the encoder, for everything that looks at them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.base import BatchData
from datamodules.storage.sample import spread
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.training.feature_files import images_per_pass

SAMPLES = 256
"""Samples whose images are looked at, unless another number is asked for."""
MAX_NUMBERS = 2**28
"""The most features that are held, 1 GiB in float32; larger encoders are looked at on fewer samples."""
SAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class ImageFeatures:
    """The features of I images, or of their tiles, on the CPU in float32."""

    sources: Mapping[str, Tensor]
    """{source: [I, N, D]}."""
    specs: Mapping[str, FeatureSpec]
    """{source: its shape}."""
    split: str
    samples: tuple[int, ...]
    """The number of each image's sample in the split."""
    tiles: tuple[int, ...]
    """The place of each image among the images or tiles of its sample."""

    def __len__(self) -> int:
        return len(self.samples)

    def pixels(self, data: BatchData, image: int) -> Tensor:
        """Returns an image [3, P, P] as the encoder got it, read again."""
        return data.pixels(self.split, [self.samples[image]])[self.tiles[image]]


@torch.no_grad()
def encode_images(encoder: Encoder, data: BatchData, split: str = "test", samples: int = SAMPLES) -> ImageFeatures:
    """Returns the features of samples that are spread evenly over a split.

    Args:
        encoder: an encoder in eval mode, on the device on which it computes.
        data: a data module that is connected to it.
        split: the name of the split.
        samples: the most samples; fewer are taken where their features would be more than MAX_NUMBERS.

    Raises:
        DataError: the split has no images.
    """
    like, store = next(encoder.parameters()), data.store(split)
    with_images = [index for index in range(len(store)) if store.image_count(index)]
    if not with_images:
        raise DataError(f"split {split} ({store.shards[0]} ...) has no images to look at")
    most = MAX_NUMBERS // sum(spec.tokens * spec.dim for spec in encoder.specs.values())
    kept = [with_images[place] for place in spread(len(with_images), samples)]
    if (images := sum(sum(data.tile_counts(split, index)) for index in kept)) > most:
        kept = [kept[place] for place in spread(len(kept), max(1, most * len(kept) // images))]
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(kept), SAMPLES_AT_ONCE):
        pixels = data.pixels(split, kept[start : start + SAMPLES_AT_ONCE])
        for part in pixels.split(images_per_pass(pixels, like.device, SAMPLES_AT_ONCE)):
            parts.append({name: x.float().cpu() for name, x in encoder(part.to(like.device, like.dtype)).items()})
    places = [(index, tile) for index in kept for tile in range(sum(data.tile_counts(split, index)))]
    return ImageFeatures(
        {name: torch.cat([part[name] for part in parts]) for name in encoder.specs},
        dict(encoder.specs),
        split,
        tuple(index for index, _ in places),
        tuple(tile for _, tile in places),
    )
