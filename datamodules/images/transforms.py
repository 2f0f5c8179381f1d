"""Turns images into the encoder's input: decoded, made square, resized and normalised."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.images.decoding import Decoder, decode_image, loaded_pixels
from fvl_lightning.core.types import ImageSpec, normalized

Fit = Literal["stretch", "pad", "crop"]

_LONGEST_PADDED = 8192
"""Pixels. An image with a longer side is scaled down before padding, so that its square has at most 64 Mi pixels."""

_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class ImageReader:
    """Reads images: holds every setting that the pixels depend on, for training, caching, scoring and inference.

    Attributes:
        spec: size, mean and standard deviation of the encoder; its number of tokens per image has no effect.
        fit: how an image is made square.
        decoder: decoder of JPEGs.
        scaled: whether large JPEGs are decoded at a fraction of their size, not below the encoder's.
    """

    spec: ImageSpec
    fit: Fit = "stretch"
    decoder: Decoder = "pillow"
    scaled: bool = False

    def decode(self, source: bytes | Path) -> NDArray[np.uint8]:
        """Decodes an encoded image or a file to [height, width, 3]; errors as in `decode_image`."""
        return decode_image(source, self.decoder, self._at_least)

    def decode_square(self, source: bytes | Path) -> NDArray[np.uint8]:
        """Decodes an encoded image or a file, and makes it [P, P, 3], so that no large image is kept.

        `pixels` gives the same values for it as for the image of `decode`, whose errors it raises.
        """
        return self.square(self.decode(source))

    def square(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Makes a decoded image [P, P, 3], for which `pixels` gives the same values."""
        return _fit(image, self.spec, self.fit)

    def take(self, image: Image.Image) -> NDArray[np.uint8]:
        """Converts a Pillow image to [height, width, 3]; one that is already loaded keeps its full size."""
        return loaded_pixels(image, self._at_least)

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Converts I decoded images to [I, 3, P, P]."""
        return to_pixels(images, self.spec, self.fit)

    def identity(self) -> dict[str, Any]:
        """Returns all fields; readers with different identities give different pixels."""
        return dataclasses.asdict(dataclasses.replace(self, spec=dataclasses.replace(self.spec, tokens_per_image=0)))

    @property
    def _at_least(self) -> int | None:
        return self.spec.size if self.scaled else None


def to_pixels(images: Sequence[NDArray[np.uint8]], spec: ImageSpec, fit: Fit = "stretch") -> Tensor:
    """Resizes I arrays [height, width, 3] in 0-255 to P x P (bicubic) and normalises them to [I, 3, P, P] float32.

    Args:
        images: images of any size.
        spec: P and the encoder's mean and standard deviation.
        fit: how an image is made square. "stretch" changes its aspect ratio, "pad" adds borders in the encoder's mean
            colour, "crop" keeps the square in its centre.
    """
    stacked = np.empty((len(images), 3, spec.size, spec.size), np.float32)
    return normalized(torch.from_numpy(_stack(images, stacked, spec, fit)), spec)


def to_bytes(images: Sequence[NDArray[np.uint8]], spec: ImageSpec, fit: Fit = "stretch") -> Tensor:
    """Resizes I arrays to [I, 3, P, P] uint8; `normalized` makes the tensor of `to_pixels` of it."""
    return torch.from_numpy(_stack(images, np.empty((len(images), 3, spec.size, spec.size), np.uint8), spec, fit))


def _stack(images: Sequence[NDArray[np.uint8]], stacked: NDArray[Any], spec: ImageSpec, fit: Fit) -> NDArray[Any]:
    for target, image in zip(stacked, images, strict=True):
        target[:] = _fit(image, spec, fit).transpose(2, 0, 1)
    return stacked


def _fit(pixels: NDArray[np.uint8], spec: ImageSpec, fit: Fit) -> NDArray[np.uint8]:
    """Resizes [h, w, 3] to [P, P, 3]."""
    height, width = pixels.shape[:2]
    if height == width == spec.size:
        return pixels
    image, box = Image.fromarray(pixels), None
    if fit == "pad" and height != width:
        image = _pad(image, spec)
    elif fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((spec.size, spec.size), _BICUBIC, box=box))


def _pad(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Centres the image on a square of the encoder's mean colour."""
    longest = max(image.size)
    if longest > _LONGEST_PADDED:
        width, height = (max(1, round(side * _LONGEST_PADDED / longest)) for side in image.size)
        image = image.resize((width, height), _BICUBIC)
    side = max(image.size)
    red, green, blue = (int(255 * mean) for mean in spec.mean)
    canvas = Image.new("RGB", (side, side), (red, green, blue))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
