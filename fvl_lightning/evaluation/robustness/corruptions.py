"""Corruptions of images in five strengths: blur, noise, JPEG, downscale, contrast and occlusion.

The first five are those of ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations"): gaussian_blur, gaussian_noise, jpeg_compression, pixelate and contrast. The parameters
are the kit's own, in the range of ImageNet-C's and beyond, so that the weakest ones lower the score of a model on the
demo's small and plain pictures too (benchmarks/controls.py). Lengths in pixels are those of images with a shorter side
of at most 224, and grow with the side of larger ones. A lower resolution is enlarged again by bicubic interpolation:
the blocks of pixelate are of unequal sizes, and a stronger one may change less. Occlusion is not in ImageNet-C.

JPEG is the exception: its blocks have 8 pixels in an image of any size, as they do in files, so that an image loses
less by it the larger it is.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fvl_lightning.core.errors import ConfigError, DataError, unknown_name

Pixels = NDArray[np.uint8]
"""A decoded image, RGB `[H, W, 3]`."""

STRENGTHS = (1, 2, 3, 4, 5)
REFERENCE_SIDE = 224
"""Shorter side, in pixels, of the images of ImageNet-C; the lengths of larger ones are scaled."""
MAX_JPEG_SIDE = 65_500
GREY = 127
"""Value of the pixels of an occluded part."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of images in five strengths."""

    title: str
    """Name in tables and figures."""
    parameters: tuple[float, float, float, float, float]
    """One for each strength."""
    meaning: str
    """The parameter and its unit, for a report."""
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    """Maps image, parameter and a generator of random numbers to an image of the same size."""


def corrupt(image: Pixels, name: str, strength: int, seed: int | None = None) -> Pixels:
    """Returns a corrupted copy of an image, of the same size.

    Args:
        image: RGB `[H, W, 3]`.
        name: a key of CORRUPTIONS.
        strength: 1 (weak) to 5 (strong).
        seed: the seed of the noise and of the position of an occlusion, for all strengths; None for a hash of
            the image's content.

    Raises:
        ConfigError: no such corruption or strength.
        DataError: the image is too long for a JPEG.
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS, "corruptions")
    if strength not in STRENGTHS:
        raise ConfigError(f"corruption {name}: strength {strength} is not one of 1, 2, 3, 4, 5")
    corruption = CORRUPTIONS[name]
    generator = np.random.default_rng(content_seed(image) if seed is None else seed)
    return corruption.apply(image, corruption.parameters[strength - 1], generator)


def content_seed(image: Pixels) -> int:
    """Returns a seed that depends only on an image's size and pixels, and so is equal on all ranks."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return int.from_bytes(digest.digest(), "little")


def _scale(image: Pixels) -> float:
    return max(1.0, min(image.shape[:2]) / REFERENCE_SIDE)


def _blur(image: Pixels, sigma: float, _: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma * _scale(image))))


def _noise(image: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    grain = max(1, round(_scale(image)))
    height, width = image.shape[:2]
    noise = generator.standard_normal((-(-height // grain), -(-width // grain), 3), dtype=np.float32)
    if grain > 1:  # noise of single pixels would vanish when a model makes the image smaller
        noise = noise.repeat(grain, 0).repeat(grain, 1)[:height, :width]
    return np.clip(np.rint(image + 255 * deviation * noise), 0, 255).astype(np.uint8)


def _jpeg(image: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    if max(image.shape[:2]) > MAX_JPEG_SIDE:
        raise DataError(f"a JPEG has at most {MAX_JPEG_SIDE} pixels a side, the image has {max(image.shape[:2])}")
    content = BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=int(quality), subsampling="4:2:0")
    return np.asarray(Image.open(content).convert("RGB"))


def _downscale(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    small = picture.resize((max(1, int(width * factor)), max(1, int(height * factor))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _contrast(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    mean = image.mean((0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return np.clip(np.rint((image - mean) * factor + mean), 0, 255).astype(np.uint8)


def _occlusion(image: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    rows, columns = max(1, round(height * sqrt(share))), max(1, round(width * sqrt(share)))
    # A stronger occlusion has the same relative place, so that it covers all that a weaker one does.
    down, right = generator.random(2)
    top, left = int(down * (height - rows)), int(right * (width - columns))
    occluded = image.copy()
    occluded[top : top + rows, left : left + columns] = GREY
    return occluded


CORRUPTIONS = {
    "blur": Corruption(
        "Gaussian blur", (2, 3, 4, 5, 6), "sigma in pixels of an image with a side of at most 224", _blur
    ),
    "noise": Corruption("Gaussian noise", (0.12, 0.18, 0.26, 0.38, 0.5), "standard deviation, of a range of 1", _noise),
    "jpeg": Corruption("JPEG", (10, 7, 5, 4, 2), "quality", _jpeg),
    "downscale": Corruption(
        "lower resolution", (0.35, 0.25, 0.18, 0.15, 0.12), "share of each side that is kept", _downscale
    ),
    "contrast": Corruption(
        "lower contrast", (0.4, 0.3, 0.2, 0.1, 0.05), "share of the contrast that is kept", _contrast
    ),
    "occlusion": Corruption(
        "occlusion", (0.1, 0.2, 0.3, 0.4, 0.5), "share of the area under one grey rectangle", _occlusion
    ),
}
"""{name: corruption}."""
