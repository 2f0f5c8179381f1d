"""One vector per image and source: the mean over its tokens, for many images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datamodules.base import BatchData
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.training.feature_files import images_per_pass

SAMPLES_READ = 64
"""Samples that are read and encoded at once; on a GPU fewer where its memory does not hold them."""


@torch.no_grad()
def pooled_features(
    encoder: Encoder,
    data: BatchData,
    split: str,
    samples: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Returns {source: [I, D]} in float32 on the CPU, per sample the mean over the tokens of its images or tiles.

    Args:
        encoder: an encoder in eval mode, on the device on which it computes.
        data: a data module that is connected to it.
        split: the name of the split.
        samples: the numbers of samples with images.
        progress: called with the number of finished samples and the number of all.
    """
    like = next(encoder.parameters())
    means: dict[str, list[Tensor]] = {name: [] for name in encoder.specs}
    for start in range(0, len(samples), SAMPLES_READ):
        part = samples[start : start + SAMPLES_READ]
        pixels = data.pixels(split, part)
        found: dict[str, list[Tensor]] = {name: [] for name in encoder.specs}
        for images in pixels.split(images_per_pass(pixels, like.device, SAMPLES_READ)):
            for name, source in encoder(images.to(like.device, like.dtype)).items():
                found[name].append(source.float().mean(1).cpu())
        counts = [sum(data.tile_counts(split, sample)) for sample in part]
        for name, rows in found.items():
            means[name] += [of_sample.mean(0) for of_sample in torch.cat(rows).split(counts)]
        progress(start + len(part), len(samples))
    return {name: torch.stack(rows) for name, rows in means.items()}
