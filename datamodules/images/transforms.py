"""Images as the encoder wants them: decoded, brought to its square and normalised."""

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
from fvl_lightning.core.types import ImageSpec

Fit = Literal["stretch", "pad", "crop"]

_LONGEST_PADDED = 8192
"""A side longer than this is reduced before it is padded: the square then has 64 Mi pixels at most."""

_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class ImageReader:
    """Everything that decides which pixels an encoded image becomes, in training, caching, scoring and use alike."""

    spec: ImageSpec
    """Size, mean and standard deviation of the encoder; the tokens that an image becomes do not count."""
    fit: Fit = "stretch"
    decoder: Decoder = "pillow"
    scaled: bool = False
    """Large JPEGs are decoded at a fraction of their size, not below the encoder's."""

    def decode(self, source: bytes | Path) -> NDArray[np.uint8]:
        """[height, width, 3] of an encoded image or a file; errors as of `decode_image`."""
        return decode_image(source, self.decoder, self._at_least)

    def take(self, image: Image.Image) -> NDArray[np.uint8]:
        """[height, width, 3] of an image of Pillow's; one that is loaded already is taken at its full size."""
        return loaded_pixels(image, self._at_least)

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """I decoded images -> [I, 3, P, P]."""
        return to_pixels(images, self.spec, self.fit)

    def identity(self) -> dict[str, Any]:
        """All fields, by which two readers that give other pixels are told apart."""
        return dataclasses.asdict(dataclasses.replace(self, spec=dataclasses.replace(self.spec, tokens_per_image=0)))

    @property
    def _at_least(self) -> int | None:
        return self.spec.size if self.scaled else None


def to_pixels(images: Sequence[NDArray[np.uint8]], spec: ImageSpec, fit: Fit = "stretch") -> Tensor:
    """I arrays [height, width, 3] in 0-255 -> [I, 3, P, P] float32, brought to P x P (bicubic) and normalised.

    Args:
        images: of any sizes, 1 x 1 and 1 x 60,000 among them.
        spec: P and the encoder's mean and standard deviation.
        fit: how an image that is no square becomes one. "stretch" changes its aspect ratio, "pad" fills with the
            encoder's mean colour what is missing around it, "crop" keeps the square in its middle.
    """
    size = spec.size
    stacked = np.empty((len(images), 3, size, size), np.float32)
    for target, image in zip(stacked, images, strict=True):
        target[:] = _fitted(image, spec, fit).transpose(2, 0, 1)
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1)
    std = torch.tensor(spec.std).view(1, 3, 1, 1)
    return torch.from_numpy(stacked).div_(255).sub_(mean).div_(std)


def _fitted(pixels: NDArray[np.uint8], spec: ImageSpec, fit: Fit) -> NDArray[np.uint8]:
    """[h, w, 3] -> [P, P, 3]."""
    height, width = pixels.shape[:2]
    if height == width == spec.size:
        return pixels
    image, box = Image.fromarray(pixels), None
    if fit == "pad" and height != width:
        image = _padded(image, spec)
    elif fit == "crop":
        side = min(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((spec.size, spec.size), _BICUBIC, box=box))


def _padded(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The image in the middle of a square of the encoder's mean colour."""
    longest = max(image.size)
    if longest > _LONGEST_PADDED:
        width, height = (max(1, round(side * _LONGEST_PADDED / longest)) for side in image.size)
        image = image.resize((width, height), _BICUBIC)
    side = max(image.size)
    red, green, blue = (int(255 * mean) for mean in spec.mean)
    canvas = Image.new("RGB", (side, side), (red, green, blue))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
