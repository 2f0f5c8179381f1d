"""Decoded images as the encoder wants them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fvl_lightning.core.types import ImageSpec


def to_pixels(images: Sequence[NDArray[np.uint8]], spec: ImageSpec) -> Tensor:
    """I arrays [height, width, 3] in 0-255 -> [I, 3, P, P] float32, stretched to P (bicubic) and normalised."""
    size = spec.size
    if not images:
        return torch.zeros(0, 3, size, size)
    stacked = torch.from_numpy(np.stack([_resized(image, size) for image in images]))
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.std).view(1, 3, 1, 1)
    pixels = stacked.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.div_(255).sub_(mean).div_(std)


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
